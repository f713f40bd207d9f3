"""Mixer-B/16: MLPs over patches and over features, 60 M parameters.

    python train.py --config configs/mixer_b16.py --workdir runs/mixer_b16
    python train.py --config configs/mixer_b16.py:finetune --config.init=REF --workdir runs/mixer_b16_finetune

Published accuracy (ImageNet-21k then ImageNet-1k, as timm measured it): 76.62 %. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (224 px: a Mixer has one resolution)."""
    return recipes.imagenet("Mixer-B/16", arg, finetune_px=224)
