"""R26+B/32: a ResNet-26 before a ViT-B, 101 M parameters.

    python train.py --config configs/hybrid_r26_b32.py --workdir runs/hybrid_r26_b32
    python train.py --config configs/hybrid_r26_b32.py:finetune --config.init=REF --workdir runs/r26_b32_tuned

No accuracy was published with the checkpoints. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train (ImageNet-1k from scratch) or finetune (384 px)."""
    return recipes.imagenet("R26+B/32", arg)
