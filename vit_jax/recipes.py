"""What config files share: recipes, plain functions that edit a tree of defaults."""

from typing import Any

from vit_jax import config
from vit_jax.errors import UserError
from vit_jax.models import variants


def imagenet(variant: str, recipe: str, *, finetune_px: int = 384) -> Any:
    """A published size with the recipe named after the colon of --config: train (the default) or finetune."""
    recipes = {"": train, "train": train, "finetune": finetune}
    if recipe not in recipes:
        raise UserError(f"no recipe {recipe!r}: use {' or '.join(filter(None, recipes))}")
    c = config.default()
    c.model.update(variants.model(variant), dtype="bfloat16")
    recipes[recipe](c)
    if recipe == "finetune":
        c.model.image_size = finetune_px
    return c


def train(c: Any) -> None:
    """ImageNet-1k from scratch for 300 epochs, optimized as in AugReg (arXiv:2106.10270 section 3.4).

    Its warm-up of 10k steps is a share of the 93,835 here, so that it shrinks with the run.
    """
    c.model.image_size = 224
    c.data.update(name="imagenet2012", resize="crop")
    c.optim.update(name="adamw", lr=1e-3, warmup_steps=0.10657, weight_decay=0.1, clip_norm=1.0)
    c.train.update(epochs=300.0, batch_size=4096, eval_every=5000, checkpoint_every=1000)


def finetune(c: Any) -> None:
    """The fine-tuning of the ViT paper (arXiv:2010.11929 B.1.1): SGD, cosine, batch 512, 20k steps.

    The warm-up is the 500 of 20k steps of its code, as a share.
    """
    c.data.update(name="imagenet2012")
    c.optim.update(name="sgd", lr=0.03, momentum=0.9, warmup_steps=0.025, clip_norm=1.0)
    c.train.update(steps=20_000, batch_size=512, eval_every=1000, checkpoint_every=500)
