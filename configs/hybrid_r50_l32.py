"""R50+L/32: a ResNet-50 before a ViT-L, 329 M parameters.

    python train.py --config configs/hybrid_r50_l32.py --workdir runs/hybrid_r50_l32
    python train.py --config configs/hybrid_r50_l32.py:finetune --config.init=REF --workdir runs/r50_l32_tuned

Published accuracy (AugReg, ImageNet-21k then ImageNet-1k at 384 px): 85.99 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("R50+L/32", arg)
