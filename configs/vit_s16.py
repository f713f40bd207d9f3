"""ViT-S/16: 22 M parameters, 4.6 GMACs at 224 px.

    python train.py --config configs/vit_s16.py --workdir runs/s16
    python train.py --config configs/vit_s16.py:finetune --workdir runs/s16_finetune

Published accuracy (AugReg, ImageNet-21k then ImageNet-1k at 384 px): 83.73 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("S/16", arg)
