"""ViT-S/32: 23 M parameters, 1.2 GMACs at 224 px.

    python train.py --config configs/vit_s32.py --workdir runs/s32
    python train.py --config configs/vit_s32.py:finetune --config.init=REF --workdir runs/s32_finetune

Published accuracy (AugReg, ImageNet-21k then ImageNet-1k at 384 px): 79.58 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train, augreg (both ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("S/32", arg)
