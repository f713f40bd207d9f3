"""ViT-B/16: 87 M parameters, 17.6 GMACs at 224 px.

    python train.py --config configs/vit_b16.py --workdir runs/b16
    python train.py --config configs/vit_b16.py:finetune --config.init=REF --workdir runs/b16_finetune
    python train.py --config configs/vit_b16.py:deit3 --workdir runs/b16_192
    python train.py --config configs/vit_b16.py:deit3_224 --config.init=runs/b16_192 --workdir runs/b16_224

Published accuracy (AugReg, ImageNet-21k then ImageNet-1k at 384 px): 85.49 %. Of ImageNet-1k from
scratch: deit3 at 192 px, then deit3_224 (arXiv:2204.07118), 83.8 %, which deit3-jax reached in 9 h 28 min of
a TPU v4-64; of augreg no figure for this setting. Unmeasured here.
"""

from typing import Any

from vit_jax import recipes


def get_config(arg: str = "") -> Any:
    """`arg` is train, augreg, deit3 (all ImageNet-1k from scratch), deit3_224 or finetune (384 px)."""
    deit3 = lambda c: recipes.deit3(c, px=192, lr=3e-3, stochastic_depth=0.2)
    deit3_224 = lambda c: recipes.deit3_finetune(c, stochastic_depth=0.2)
    return recipes.imagenet("B/16", arg, more={"deit3": deit3, "deit3_224": deit3_224})
