"""ViT-B/32: 88 M parameters, 4.4 GMACs at 224 px.

    python train.py --config configs/vit_b32.py --workdir runs/b32
    python train.py --config configs/vit_b32.py:finetune --config.init=REF --workdir runs/b32_finetune

Published accuracy (AugReg, ImageNet-21k then ImageNet-1k at 384 px): 83.59 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train, augreg (both ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("B/32", arg)
