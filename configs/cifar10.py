"""CIFAR-10: from scratch with 2.8 M parameters, or fine-tuned from AugReg's ViT-B/32 at 384 px.

    python train.py --config configs/cifar10.py --workdir runs/cifar10
    python train.py --config configs/cifar10.py:finetune --workdir runs/cifar10_finetune

Published accuracy: 93.58 % from scratch in 100 epochs (arXiv:2112.13492, a ViT without its additions);
98.55 % (98.46 to 98.60) fine-tuned in 10,000 steps (big_vision's transfer.py, mean of five). No cost was
published. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes
from vit_jax.errors import UserError


def get_config(arg: str = "") -> Any:
    """`arg` is scratch (the default) or finetune."""
    if arg not in ("", "scratch", "finetune"):
        raise UserError(f"no recipe {arg!r}: use scratch or finetune")
    if arg == "finetune":
        split = {"train_split": "train[:98%]", "crop": "window"}
        return recipes.transfer("cifar10", lr=3e-3, steps=10_000, warmup_steps=500, **split)
    return recipes.cifar("cifar10")
