"""R50+B/16: three stages of a ResNet-50 before a ViT-B, 99 M parameters.

    python train.py --config configs/hybrid_r50_b16.py --workdir runs/hybrid_r50_b16
    python train.py --config configs/hybrid_r50_b16.py:finetune --config.init=REF --workdir runs/r50_b16_tuned

Published accuracy (ImageNet-21k, then CIFAR-10 at 384 px): 98.72 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("R50+B/16", arg)
