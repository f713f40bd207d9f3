"""R26+S/32: a ResNet-26 before a ViT-S, 36 M parameters.

    python train.py --config configs/hybrid_r26_s32.py --workdir runs/hybrid_r26_s32
    python train.py --config configs/hybrid_r26_s32.py:finetune --config.init=REF --workdir runs/r26_s32_tuned

Published accuracy (AugReg, ImageNet-21k then ImageNet-1k at 384 px): 83.85 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("R26+S/32", arg)
