"""ViT-L/16: 304 M parameters, 61.6 GMACs at 224 px.

    python train.py --config configs/vit_l16.py --workdir runs/l16
    python train.py --config configs/vit_l16.py:finetune --config.init=REF --workdir runs/l16_finetune

Published accuracy (AugReg, ImageNet-21k then ImageNet-1k at 384 px): 85.59 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train, augreg (both ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("L/16", arg)
