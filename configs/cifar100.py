"""CIFAR-100: from scratch with 2.8 M parameters, or fine-tuned from AugReg's ViT-B/32 at 384 px.

    python train.py --config configs/cifar100.py --workdir runs/cifar100
    python train.py --config configs/cifar100.py:finetune --workdir runs/cifar100_finetune

Published accuracy: 73.81 % from scratch in 100 epochs (arXiv:2112.13492, a ViT without its additions);
91.35 % (91.09 to 91.62) fine-tuned in 10,000 steps (big_vision's transfer.py, mean of five). No cost was
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
        return recipes.transfer("cifar100", lr=1e-2, steps=10_000, warmup_steps=500, **split)
    return recipes.cifar("cifar100")
