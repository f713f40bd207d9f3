"""Recipes of papers have the papers' numbers: stated here as the papers and their code state them.

Each row names its source. What a recipe cannot have as its paper does is told in its docstring.
"""

import pytest
from config_files import FILES, RECIPES
from test_golden_configs import DATA, value_of

from vit_jax import config
from vit_jax.errors import UserError
from vit_jax.training import optim

# arXiv:2010.11929 B.1.1, table 4: SGD, momentum 0.9, cosine, batch 512, no decay, clip 1, 384 px.
VIT_FINETUNE = {
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.schedule": "cosine",
    "optim.weight_decay": 0.0,
    "optim.clip_norm": 1.0,
    "train.batch_size": 512,
    "model.image_size": 384,
}
# The head of big_vision's transfer.py: learning rates, steps, resize to 448 and crops of 384, splits.
TRANSFER = VIT_FINETUNE | {
    "init": "augreg/B_32",
    "data.resize": "crop",
    "data.crop_fraction": 384 / 448,
    "data.flip": True,
    "data.eval_split": "test",
    "model.patch_size": 32,
    "model.width": 768,
}
CIFAR_TRANSFER = TRANSFER | {"train.steps": 10_000, "warm-up": 500, "data.train_split": "train[:98%]"}
CIFAR_TRANSFER |= {"data.augment": "window"}
SMALL_TRANSFER = TRANSFER | {"train.steps": 500, "warm-up": 100, "data.train_split": "train[:90%]"}
SMALL_TRANSFER |= {"data.augment": "inception"}

# arXiv:2106.10270 section 3.4: Adam, batch 4096, cosine after 10k steps, clip 1; big_vision's vit_i1k.py:
# 300 epochs, lr 1e-3, decay 1e-4 not scaled by it, momentum in bfloat16, two operations of RandAugment.
AUGREG = {
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "optim.beta1": 0.9,
    "optim.beta2": 0.999,
    "optim.momentum_dtype": "bfloat16",
    "optim.weight_decay": 0.1,
    "optim.schedule": "cosine",
    "optim.clip_norm": 1.0,
    "warm-up": 10_000,
    "train.batch_size": 4096,
    "train.epochs": 300.0,
    "loss.name": "softmax",
    "loss.cutmix": 0.0,
    "loss.label_smoothing": 0.0,
    "model.image_size": 224,
    "model.dropout": 0.0,
    "model.stochastic_depth": 0.0,
    "model.pooling": "token",
    "data.augment": "inception",
    "data.min_area": 0.05,
    "data.flip": True,
    "data.policy": "randaug",
    "data.randaug_layers": 2,
    "data.resize": "crop",
    "data.crop_fraction": 224 / 256,
    "data.train_split": "train[:99%]",
}


def augreg(magnitude, mixup, width):
    return AUGREG | {
        "data.randaug_magnitude": magnitude,
        "loss.mixup": mixup,
        "model.width": width,
        "model.pre_logits": width,
    }


# arXiv:2204.07118 and the commands of its README_revenge.md; models_v2.py for the model.
DEIT3_MODEL = {
    "model.patch_size": 16,
    "model.layer_scale": 1e-4,
    "model.posemb_class_slot": False,
    "model.gelu": "exact",
    "model.norm_eps": 1e-6,
    "model.dropout": 0.0,
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
    "data.filter": "pil_bicubic",
    "data.crop_fraction": 1.0,
    "data.augment": "inception",
    "data.flip": True,
    "data.erase": 0.0,
    "loss.mixup": 0.8,
    "loss.cutmix": 1.0,
    "optim.schedule": "cosine",
}
DEIT3 = DEIT3_MODEL | {
    "optim.name": "lamb",
    "optim.weight_decay": 0.05,
    "warm-up": 5 * 1_281_167 / 2048,
    "train.epochs": 800.0,
    "train.batch_size": 256 * 8,
    "loss.name": "sigmoid",
    "loss.label_smoothing": 0.0,
    "data.policy": "three",
    "data.jitter": 0.3,
    "data.repeats": 3,
}
DEIT3_FINETUNE = DEIT3_MODEL | {
    "optim.name": "adamw",
    "optim.lr": 1e-5,
    "optim.weight_decay": 0.1,
    "warm-up": 5 * 1_281_167 / 512,
    "train.epochs": 20.0,
    "train.batch_size": 64 * 8,
    "loss.name": "softmax",
    "loss.label_smoothing": 0.1,
    "model.stochastic_depth": 0.2,
    "model.image_size": 224,
    "data.policy": "randaug",
    "data.randaug_magnitude": 9,
    "data.jitter": 0.0,
    "data.repeats": 1,
}
# arXiv:2112.13492 and its main.py and create_model.py.
SMALL_DATA = {
    "model.image_size": 32,
    "model.patch_size": 4,
    "model.width": 192,
    "model.depth": 9,
    "model.heads": 12,
    "model.mlp_width": 2 * 192,
    "model.stochastic_depth": 0.1,
    "model.gelu": "exact",
    "model.norm_eps": 1e-5,
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.05,
    "warm-up": 10 * 50_000 / 128,
    "train.epochs": 100.0,
    "train.batch_size": 128,
    "loss.label_smoothing": 0.1,
    "loss.mixup": 1.0,
    "loss.cutmix": 1.0,
    "data.augment": "pad",
    "data.pad_px": 4,
    "data.flip": True,
    "data.erase": 0.25,
    "data.repeats": 3,
}
STATED = {
    "vit_s16:finetune": VIT_FINETUNE | {"train.steps": 20_000, "warm-up": 500, "optim.lr": 0.03},
    "cifar10:finetune": CIFAR_TRANSFER | {"optim.lr": 0.003},
    "cifar100:finetune": CIFAR_TRANSFER | {"optim.lr": 0.01},
    "flowers": SMALL_TRANSFER | {"optim.lr": 0.003, "data.name": "oxford_flowers102"},
    "pets": SMALL_TRANSFER | {"optim.lr": 0.003, "data.name": "oxford_iiit_pet"},
    "vit_ti16:augreg": augreg(0, 0.0, 192),
    "vit_s32:augreg": augreg(10, 0.2, 384),
    "vit_s16:augreg": augreg(15, 0.5, 384),
    "vit_b32:augreg": augreg(15, 0.5, 768),
    "vit_b16:augreg": augreg(15, 0.5, 768),
    "vit_l16:augreg": augreg(15, 0.5, 1024),
    # arXiv:2205.01580 section 2 and big_vision's vit_s16_i1k.py
    "vit_s16:plain": augreg(10, 0.2, 384)
    | {
        "train.epochs": 90.0,
        "train.batch_size": 1024,
        "model.pooling": "gap",
        "model.class_token": False,
        "model.posemb": "sincos2d",
    },
    "vit_s16:deit3": DEIT3
    | {"optim.lr": 4e-3, "model.image_size": 224, "model.stochastic_depth": 0.05, "model.width": 384},
    "vit_b16:deit3": DEIT3
    | {"optim.lr": 3e-3, "model.image_size": 192, "model.stochastic_depth": 0.2, "model.width": 768},
    "vit_b16:deit3_224": DEIT3_FINETUNE,
    "cifar10": SMALL_DATA,
    "cifar100": SMALL_DATA,
}


def warm_up(cfg):
    """Steps of warm-up, a share of the run or not."""
    examples, _ = DATA[cfg.data.name]
    steps = optim.total_steps(cfg.train.steps, cfg.train.epochs, examples, cfg.train.batch_size)
    return cfg.optim.warmup_steps * (1 if cfg.optim.warmup_steps >= 1 else steps)


@pytest.mark.parametrize("name", STATED)
def test_a_recipe_has_the_numbers_of_its_paper(name):
    stem, _, arg = name.partition(":")
    cfg = config.parse(config.load_file(f"configs/{stem}.py:{arg}"))
    stated = dict(STATED[name])
    if "warm-up" in stated:
        # A share of the run is rounded in its file to five digits, and steps are whole: 2 in 10,000 and 1.
        assert warm_up(cfg) == pytest.approx(stated.pop("warm-up"), rel=2e-4, abs=1)
    assert {field: value_of(cfg, field) for field in stated} == stated


def test_every_recipe_of_a_paper_is_a_recipe():
    known = {f"{path.stem}:{arg}".rstrip(":") for path, arg in RECIPES}
    assert STATED.keys() <= known


def test_a_file_of_a_paper_tells_its_figure_and_that_it_is_unmeasured():
    stems = {name.partition(":")[0] for name in STATED}
    for path in FILES:
        if path.stem in stems:
            told = path.read_text().split('"""')[1]
            assert "ublished" in told
            assert "%" in told
            assert "Unmeasured here." in told


def test_a_recipe_that_is_not_there_is_named():
    for reference in ("configs/vit_b16.py:plain", "configs/cifar10.py:deit3", "configs/vit_h14.py:augreg"):
        with pytest.raises(UserError, match="no recipe"):
            config.load_file(reference)
