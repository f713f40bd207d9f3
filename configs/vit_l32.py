"""ViT-L/32: 307 M parameters; 49 patches at 224 px.

    python train.py --config configs/vit_l32.py --workdir runs/l32
    python train.py --config configs/vit_l32.py:finetune --config.init=REF --workdir runs/l32_finetune

Published accuracy (ImageNet-21k, then CIFAR-10 at 384 px): 99.06 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("L/32", arg)
