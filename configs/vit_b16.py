"""ViT-B/16: 87 M parameters, 17.6 GMACs at 224 px.

    python train.py --config configs/vit_b16.py --workdir runs/b16
    python train.py --config configs/vit_b16.py:finetune --workdir runs/b16_finetune

Published accuracy (AugReg, ImageNet-21k then ImageNet-1k at 384 px): 85.49 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("B/16", arg)
