"""ViT-Ti/16: 5.7 M parameters, 1.3 GMACs at 224 px.

    python train.py --config configs/vit_ti16.py --workdir runs/ti16
    python train.py --config configs/vit_ti16.py:finetune --config.init=REF --workdir runs/ti16_finetune

Published accuracy (AugReg, ImageNet-21k then ImageNet-1k at 384 px): 78.22 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train, augreg (both ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("Ti/16", arg)
