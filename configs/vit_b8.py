"""ViT-B/8: 87 M parameters; 784 patches at 224 px.

    python train.py --config configs/vit_b8.py --workdir runs/b8
    python train.py --config configs/vit_b8.py:finetune --config.init=REF --workdir runs/b8_finetune

Published accuracy (AugReg, at 224 px, as timm measured it): 85.84 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("B/8", arg)
