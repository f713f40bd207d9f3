"""ViT-H/14: 632 M parameters; 256 patches at 224 px.

    python train.py --config configs/vit_h14.py --workdir runs/h14
    python train.py --config configs/vit_h14.py:finetune --config.init=REF --workdir runs/h14_finetune

Published accuracy (JFT-300M, then ImageNet-1k): 88.55 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (518 px, as in the paper)."""
    return recipes.imagenet("H/14", arg, finetune_px=518)
