"""Hybrids in the names of timm: its ViT behind its ResNetV2 stem, with timm's epsilons in the stem."""

import dataclasses

from vit_jax.sections import Model
from vit_jax.weights.dialect import CONV, Row, norm
from vit_jax.weights.dialects.timm import NUMERICS, TIMM

BACKBONE = "patch_embed.backbone"
STEM, UNIT = "embed/stem", "embed/stem/stage{i}_unit{j}"
BOTTLENECK = f"{BACKBONE}.stages.{{i0}}.blocks.{{j0}}"


def _root(theirs: str) -> tuple[Row, ...]:
    kernel = Row(f"{STEM}/conv_root/kernel", f"{theirs}.conv.weight", CONV)
    return kernel, *norm(f"{STEM}/norm_root", f"{theirs}.norm")


UNITS = (
    Row(f"{UNIT}/conv_proj/kernel", f"{BOTTLENECK}.downsample.conv.weight", CONV),
    *norm(f"{UNIT}/norm_proj", f"{BOTTLENECK}.downsample.norm"),
    Row(f"{UNIT}/conv{{n}}/kernel", f"{BOTTLENECK}.conv{{n}}.weight", CONV),
    *norm(f"{UNIT}/norm{{n}}", f"{BOTTLENECK}.norm{{n}}"),
)


def _is_hybrid(model: Model) -> bool:
    return bool(model.stem_width) and model.mlp == "gelu" and model.rotary == "none"


_HYBRID = dataclasses.replace(
    TIMM,
    variant="timm's hybrid",
    rows=(*_root(f"{BACKBONE}.stem"), *UNITS, *TIMM.rows),
    holds=lambda model: _is_hybrid(model) and bool(model.stem_blocks),
    fits=lambda shapes: f"{BACKBONE}.stem.conv.weight" in shapes,
    numerics=NUMERICS | {"stem_eps": "timm"},
    derived=lambda model: {},
    heads={},
)
_ROOT_ALONE = dataclasses.replace(
    _HYBRID,
    variant="timm's hybrid without stages",
    rows=(*_root(BACKBONE), *TIMM.rows),
    holds=lambda model: _is_hybrid(model) and not model.stem_blocks,
    fits=lambda shapes: f"{BACKBONE}.conv.weight" in shapes,
)
DIALECTS = (_HYBRID, _ROOT_ALONE)
