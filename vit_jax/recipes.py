"""What config files share: recipes, plain functions that edit a tree of defaults.

Those of papers are checked against the papers' numbers in tests/config/test_recipes.py.
"""

from collections.abc import Callable
from typing import Any

from vit_jax import config, pixels
from vit_jax.errors import UserError
from vit_jax.models import variants

CIFAR = {  # mean and standard deviation of the training pixels
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

# What big_vision's vit_i1k.py takes for each size, after figure 4 of AugReg: RandAugment's magnitude, mixup.
AUGREG = {
    "Ti/16": (0, 0.0),
    "S/32": (10, 0.2),
    "S/16": (15, 0.5),
    "B/32": (15, 0.5),
    "B/16": (15, 0.5),
    "L/16": (15, 0.5),
}

Recipe = Callable[[Any], None]


def imagenet(
    variant: str, recipe: str, *, finetune_px: int = 384, more: dict[str, Recipe] | None = None
) -> Any:
    """A published size with the recipe named after the colon of --config: train (the default) or finetune.

    The sizes of AUGREG have augreg, too; `more` are those of one size alone.
    """
    recipes = {"": train, "train": train, "finetune": lambda c: finetune(c, finetune_px)} | (more or {})
    if variant in AUGREG:
        recipes["augreg"] = lambda c: augreg(c, *AUGREG[variant])
    if recipe not in recipes:
        raise UserError(f"no recipe {recipe!r}: use {' or '.join(filter(None, recipes))}")
    c = config.default()
    c.model.update(variants.model(variant), dtype="bfloat16")
    recipes[recipe](c)
    return c


def train(c: Any) -> None:
    """ImageNet-1k from scratch for 300 epochs, optimized as in AugReg (arXiv:2106.10270 section 3.4).

    Its warm-up of 10k steps is a share of the 93,835 here, so that it shrinks with the run.
    """
    c.model.image_size = 224
    c.data.update(name="imagenet2012", resize="crop")
    c.optim.update(name="adamw", lr=1e-3, warmup_steps=0.10657, weight_decay=0.1, clip_norm=1.0)
    c.train.update(epochs=300.0, batch_size=4096, eval_every=5000, checkpoint_every=1000)


def augreg(c: Any, magnitude: int, mixup: float) -> None:
    """ImageNet-1k from scratch as AugReg has it (arXiv:2106.10270), by big_vision's vit_i1k.py.

    Its weight decay of 1e-4 is not scaled by the peak rate of 1e-3: 0.1 here.
    """
    train(c)
    c.model.pre_logits = c.model.width
    c.data.update(train_split="train[:99%]", eval_split="validation")
    c.data.update(policy="randaug", randaug_layers=2, randaug_magnitude=magnitude)
    c.optim.momentum_dtype = "bfloat16"
    c.loss.mixup = mixup


def plain(c: Any) -> None:
    """Better plain ViT baselines (arXiv:2205.01580): AugReg's in batches of 1024, for 90 epochs."""
    augreg(c, magnitude=10, mixup=0.2)
    c.model.update(class_token=False, pooling="gap", posemb="sincos2d")
    c.optim.warmup_steps = 10_000
    c.train.update(epochs=90.0, batch_size=1024, eval_every=2500)


def deit3(c: Any, *, px: int, lr: float, stochastic_depth: float) -> None:
    """DeiT III on ImageNet-1k for 800 epochs (arXiv:2204.07118), as its README_revenge.md trains it.

    Other than there: the rate falls to 0, not to 1e-5; stochastic depth grows from 0 to its value at the last
    block; a mixed image has its classes in shares, where each of them is whole there; kernels begin as
    elsewhere here; and LAMB scales biases and norms by their own lengths, too.
    """
    _deit_model(c, px)
    c.model.stochastic_depth = stochastic_depth
    c.data.update(policy="three", jitter=0.3, repeats=3, min_area=0.08)
    c.loss.update(name="sigmoid", mixup=0.8, cutmix=1.0)
    c.optim.update(name="lamb", lr=lr, warmup_steps=5 / 800, weight_decay=0.05, clip_norm=1.0)
    c.train.update(epochs=800.0, batch_size=2048, eval_every=5000, checkpoint_every=1000)


def deit3_finetune(c: Any, *, stochastic_depth: float) -> None:
    """DeiT III from 192 px to 224 px in 20 epochs, as README_revenge.md does it; --config.init is its run.

    RandAugment is big_vision's at magnitude 9, whose operations are not timm's in each detail.
    """
    _deit_model(c, 224)
    c.model.stochastic_depth = stochastic_depth
    c.data.update(policy="randaug", randaug_layers=2, randaug_magnitude=9, min_area=0.08)
    c.loss.update(mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    c.optim.update(name="adamw", lr=1e-5, warmup_steps=5 / 20, weight_decay=0.1)
    c.train.update(epochs=20.0, batch_size=512, eval_every=5000, checkpoint_every=1000)


def _deit_model(c: Any, px: int) -> None:
    c.model.update(image_size=px, posemb_class_slot=False, layer_scale=1e-4, gelu="exact")
    c.data.update(name="imagenet2012", resize="crop", crop_fraction=1.0, filter="pil_bicubic")
    c.data.update(**pixels.IMAGENET)  # as PyTorch's recipes


def finetune(c: Any, px: int = 384) -> None:
    """The fine-tuning of the ViT paper (arXiv:2010.11929 B.1.1): SGD, cosine, batch 512, 20k steps.

    The warm-up is the 500 of 20k steps of its code, as a share.
    """
    c.model.image_size = px
    c.data.update(name="imagenet2012")
    c.optim.update(name="sgd", lr=0.03, momentum=0.9, warmup_steps=0.025, clip_norm=1.0)
    c.train.update(steps=20_000, batch_size=512, eval_every=1000, checkpoint_every=500)


def transfer(
    name: str, *, lr: float, steps: int, warmup_steps: int, train_split: str, crop: str = "inception"
) -> Any:
    """AugReg's B/32 on a small data set at 384 px, as big_vision's transfer.py does it after AugReg.

    SGD with momentum 0.9, in batches of 512, no weight decay (arXiv:2010.11929 table 4, which lists the same
    steps). `crop` is data.augment: inception, or window, of 384 of 448 px. The warm-up is a share, so that it
    shrinks with the run.
    """
    c = config.default()
    c.init = "augreg/B_32"
    c.model.update(variants.model("B/32"), dtype="bfloat16")
    finetune(c)
    c.data.update(name=name, train_split=train_split, eval_split="test")
    c.data.update(resize="crop", crop_fraction=384 / 448, augment=crop)
    c.optim.update(lr=lr, warmup_steps=warmup_steps / steps)
    c.train.update(steps=steps, eval_every=100, checkpoint_every=500)
    return c


def cifar(name: str) -> Any:
    """A ViT of 2.8 M parameters on CIFAR from scratch for 100 epochs (arXiv:2112.13492), by its main.py.

    Other than there: RandAugment in place of AutoAugment's policy for CIFAR; every batch is mixed, where half
    of them are there; erased rectangles are noise, and a third of the image at most.
    """
    c = config.default()
    c.model.update(image_size=32, patch_size=4, width=192, depth=9, heads=12, mlp_width=384)
    c.model.update(gelu="exact", norm_eps=1e-5, stochastic_depth=0.1)
    mean, std = CIFAR[name]
    c.data.update(
        name=name, mean=mean, std=std, augment="pad", pad_px=4, repeats=3, erase=0.25, cache_gib=1.0
    )
    c.data.update(policy="randaug", randaug_layers=2, randaug_magnitude=9)
    c.loss.update(label_smoothing=0.1, mixup=1.0, cutmix=1.0)
    c.optim.update(name="adamw", lr=1e-3, warmup_steps=10 / 100, weight_decay=0.05)
    c.train.update(epochs=100.0, batch_size=128, eval_every=2000, checkpoint_every=2000)
    return c
