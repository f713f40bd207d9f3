"""R+Ti/16: a ResNet root before a ViT-Ti, 6.3 M parameters.

    python train.py --config configs/hybrid_r_ti16.py --workdir runs/hybrid_r_ti16
    python train.py --config configs/hybrid_r_ti16.py:finetune --config.init=REF --workdir runs/r_ti16_tuned

Published accuracy (AugReg, ImageNet-21k then ImageNet-1k at 384 px): 75.40 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("R+Ti/16", arg)
