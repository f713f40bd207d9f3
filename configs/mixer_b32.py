"""Mixer-B/32: MLPs over patches and over features, 60 M parameters.

    python train.py --config configs/mixer_b32.py --workdir runs/mixer_b32
    python train.py --config configs/mixer_b32.py:finetune --config.init=REF --workdir runs/mixer_b32_finetune

No accuracy was published with the checkpoints. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (224 px: a Mixer has one resolution)."""
    return recipes.imagenet("Mixer-B/32", arg, finetune_px=224)
