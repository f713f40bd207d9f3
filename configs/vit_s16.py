"""ViT-S/16: 22 M parameters, 4.6 GMACs at 224 px.

    python train.py --config configs/vit_s16.py --workdir runs/s16
    python train.py --config configs/vit_s16.py:finetune --config.init=REF --workdir runs/s16_finetune
    python train.py --config configs/vit_s16.py:plain --workdir runs/s16_plain

Published accuracy (AugReg, ImageNet-21k then ImageNet-1k at 384 px): 83.73 %. Of ImageNet-1k from
scratch: plain (arXiv:2205.01580) 76.5 % in 6 to 7 hours of a TPU v3-8; deit3 (arXiv:2204.07118) 81.4 %, which
deit3-jax reached in 5 h 19 min of a TPU v4-64; of augreg no figure for this setting. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train, augreg, plain, deit3 (all ImageNet-1k from scratch) or finetune (384 px)."""
    deit3 = lambda c: recipes.deit3(c, px=224, lr=4e-3, stochastic_depth=0.05)
    return recipes.imagenet("S/16", arg, more={"plain": recipes.plain, "deit3": deit3})
