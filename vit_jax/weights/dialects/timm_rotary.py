"""Files of timm with rotary positions, and of authors: DINOv3, EVA-02, Perception Encoder, RoPE-ViT.

Names tell the family. DINOv3's keys have no bias: the authors' file holds zeros in its place. What pools the
tokens is for readers of timm's DINOv3 to choose; as it is published there, it is their mean.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from vit_jax import pixels
from vit_jax.sections import Model, Preprocess
from vit_jax.weights.dialect import (
    HEADS_BIAS,
    Dialect,
    Row,
    Shapes,
    apart,
    biasless,
    conv,
    dense,
    fused,
    norm,
    out,
)
from vit_jax.weights.dialects.timm import BLOCK, GELU_MLP, MASK, NUMERICS, TIMM_ONLY, swiglu

ATTENTION = "block_{i}/attention"


BODY = (
    Row("embed/class_token", "cls_token"),
    Row("embed/positions", "pos_embed"),
    *conv("embed/patch", "patch_embed.proj"),
    *norm("block_{i}/norm{n}", f"{BLOCK}.norm{{n}}"),
    *out(f"{ATTENTION}/out", f"{BLOCK}.attn.proj"),
    Row("block_{i}/scale{n}/gamma", f"{BLOCK}.gamma_{{n}}"),
    *norm("norm", "norm"),
    *dense("head", "head"),
    *TIMM_ONLY,
)
FUSED = fused(ATTENTION, f"{BLOCK}.attn.qkv")
# Queries' and values' biases beside the fused kernel.
BIASES_APART = (
    *biasless(FUSED),
    Row(f"{ATTENTION}/query/bias", f"{BLOCK}.attn.q_bias", HEADS_BIAS),
    Row(f"{ATTENTION}/value/bias", f"{BLOCK}.attn.v_bias", HEADS_BIAS),
)
# One array each; the authors of EVA-02 have the biases outside.
APART = tuple(
    row._replace(also=(row.theirs.replace("_proj.bias", "_bias"),)) if row.layout is HEADS_BIAS else row
    for row in apart(ATTENTION, lambda name: f"{BLOCK}.attn.{name[0]}_proj")
)


def _gated(gate: str, up: str, down: str, also: tuple[str, str, str]) -> tuple[Row, ...]:
    rows = (
        *dense("block_{i}/mlp/gate", gate),
        *dense("block_{i}/mlp/up", up),
        *dense("block_{i}/mlp/down", down),
    )
    old = dict(zip((gate, up, down), also, strict=True))
    renamed = lambda row: old[row.theirs.rpartition(".")[0]] + "." + row.theirs.rpartition(".")[2]
    return tuple(row._replace(also=(renamed(row),)) for row in rows)


AUTHORS_MLP = (f"{BLOCK}.mlp.w1", f"{BLOCK}.mlp.w2", f"{BLOCK}.mlp.w3")
GATED_MLP = _gated(f"{BLOCK}.mlp.fc1_g", f"{BLOCK}.mlp.fc1_x", f"{BLOCK}.mlp.fc2", AUTHORS_MLP)
GATED_AUTHORS_MLP = _gated(*AUTHORS_MLP, AUTHORS_MLP)
AUTHORS_NORMS = (
    *norm(f"{ATTENTION}/norm", f"{BLOCK}.attn.inner_attn_ln"),
    *norm("block_{i}/mlp/norm", f"{BLOCK}.mlp.ffn_ln"),
)


def _preprocess(statistics: Any) -> Callable[[Model], Preprocess]:
    return lambda model: Preprocess(resize="crop", filter="pil_bicubic", crop_fraction=1.0, **statistics)


def _has(*present: str, absent: tuple[str, ...] = ()) -> Callable[[Shapes], bool]:
    """Files with all names of `present`, none of `absent`; those that begin with a dot are block 0's."""
    full = lambda name: f"blocks.0{name}" if name.startswith(".") else name
    return lambda shapes: (
        all(full(n) in shapes for n in present) and not any(full(n) in shapes for n in absent)
    )


ROPE = {r"(?:.+\.)?(?:rope|rope_embed)\.(?:periods|freqs_cos|freqs_sin)": "computed from the shapes"}

_DINOV3 = Dialect(
    name="timm",
    variant="timm's DINOv3",
    rows=(*BODY, *BIASES_APART, *GELU_MLP),
    holds=lambda model: model.rotary == "dinov3" and model.mlp == "gelu",
    preprocess=_preprocess(pixels.IMAGENET),
    fits=_has(
        ".gamma_1", "cls_token", "reg_token", absent=("pos_embed", ".attn.qkv.bias", ".mlp.fc1_g.weight")
    ),
    numerics={"gelu": "exact", "norm_eps": 1e-5, "rotary": "dinov3", "pooling": "gap"},
    chosen=("pooling",),
    heads={1280: 20, 4096: 32},
    posemb_method="bicubic_antialias",
    ignored=ROPE,
)
_DINOV3_GATED = dataclasses.replace(
    _DINOV3,
    variant="timm's DINOv3 with SwiGLU",
    rows=(*BODY, *BIASES_APART, *GATED_MLP),
    holds=lambda model: model.rotary == "dinov3" and model.mlp == "swiglu",
    fits=_has(
        ".gamma_1", "cls_token", "reg_token", ".mlp.fc1_g.weight", absent=("pos_embed", ".attn.qkv.bias")
    ),
)
_ROPE_REG = dataclasses.replace(
    _DINOV3,
    variant="timm's rope_reg",
    holds=lambda model: model.rotary == "eva02" and model.mlp == "gelu" and model.posemb == "none",
    preprocess=_preprocess(pixels.HALF),
    fits=_has(".gamma_1", "reg_token", ".attn.q_bias", absent=("pos_embed", "cls_token")),
    numerics=NUMERICS | {"rotary": "eva02", "rotary_grid": 16},
    chosen=("rotary_grid",),
    heads={},
)
_ROPE_VIT = dataclasses.replace(
    _DINOV3,
    variant="RoPE-ViT",
    rows=(*BODY, *FUSED, *GELU_MLP),
    holds=lambda model: model.rotary == "rope_vit",
    fits=_has(".gamma_1", ".attn.qkv.bias", "cls_token", absent=("pos_embed", "reg_token")),
    numerics=NUMERICS | {"rotary": "rope_vit"},
    chosen=(),
    heads={},
)
_EVA02 = dataclasses.replace(
    _DINOV3,
    variant="EVA-02",
    rows=(*BODY, *APART, *GATED_MLP),
    holds=lambda model: model.rotary == "eva02" and model.mlp_norm,
    preprocess=_preprocess(pixels.CLIP),
    fits=_has(".attn.q_proj.weight", ".mlp.fc1_g.weight", "pos_embed"),
    numerics=NUMERICS | {"rotary": "eva02", "rotary_grid": 16},
    chosen=("rotary_grid", "pooling"),
    heads={},
    ignored=ROPE | {"mask_token": MASK, r"lm_head\..+": "predicts masked patches, in pretraining only"},
)
_EVA02_PACKED = dataclasses.replace(
    _EVA02,
    variant="EVA-02, tiny or small",
    rows=(*BODY, *BIASES_APART, *swiglu(f"{BLOCK}.mlp.fc1", f"{BLOCK}.mlp.fc2")),
    holds=lambda model: model.rotary == "eva02" and model.mlp == "swiglu" and not model.mlp_norm,
    fits=_has(".attn.q_bias", ".attn.qkv.weight", "pos_embed", absent=(".gamma_1",)),
)
_EVA02_AUTHORS = dataclasses.replace(
    _EVA02,
    name="eva02",
    variant="EVA-02 of its authors",
    rows=(*AUTHORS_NORMS, *BODY, *APART, *GATED_AUTHORS_MLP),
    fits=_has(".attn.q_proj.weight", ".mlp.w1.weight", "pos_embed"),
)
_PE = dataclasses.replace(
    _DINOV3,
    variant="Perception Encoder",
    rows=(*BODY, *FUSED, *GELU_MLP),
    holds=lambda model: model.rotary == "pe" and model.pooling == "map",
    preprocess=lambda model: Preprocess(resize="squash", filter="pil_bicubic", mean=(0.5,), std=(0.5,)),
    fits=_has("norm_pre.weight", "attn_pool.latent"),
    numerics={"gelu": "exact", "norm_eps": 1e-5, "rotary": "pe", "pool_heads": 8},
    derived=lambda model: {"rotary_grid": model.grid_hw[0]},
    chosen=("rotary_grid",),
    heads={1536: 16},
)
_PE_SPATIAL = dataclasses.replace(
    _PE,
    variant="Perception Encoder without pooling",
    holds=lambda model: model.rotary == "pe" and model.pooling != "map",
    fits=_has("norm_pre.weight", absent=("norm.weight", "fc_norm.weight")),
    numerics={"gelu": "exact", "norm_eps": 1e-5, "rotary": "pe", "pooling": "gap"},
    chosen=("rotary_grid", "pooling"),
)
_DINOV3_AUTHORS = dataclasses.replace(
    _DINOV3,
    name="dinov3",
    variant="DINOv3 of its authors",
    rows=(
        Row("embed/registers", "storage_tokens"),
        *(
            row
            for row in BODY
            if not row.ours.startswith("embed/registers") and not row.ours.endswith("/gamma")
        ),
        Row("block_{i}/scale{n}/gamma", f"{BLOCK}.ls{{n}}.gamma"),
        *(row for row in FUSED if row.ours != f"{ATTENTION}/key/bias"),
        *GELU_MLP,
    ),
    fits=_has("storage_tokens", absent=(".mlp.w1.weight",)),
    numerics={"gelu": "exact", "norm_eps": 1e-5, "rotary": "dinov3"},
    chosen=("pooling",),
    mask="mask_token",
    ignored=ROPE
    | {
        "mask_token": MASK,
        r"blocks\.\d+\.attn\.qkv\.bias_mask": "says that keys have no bias",
        r"local_cls_norm\..+": "of local crops, in pretraining only",
    },
)
_DINOV3_AUTHORS_GATED = dataclasses.replace(
    _DINOV3_AUTHORS,
    variant="DINOv3 of its authors with SwiGLU",
    rows=(*(row for row in _DINOV3_AUTHORS.rows if "/mlp/" not in row.ours), *GATED_AUTHORS_MLP),
    holds=_DINOV3_GATED.holds,
    fits=_has("storage_tokens", ".mlp.w1.weight"),
)
DIALECTS = (
    *(_PE, _PE_SPATIAL, _DINOV3, _DINOV3_GATED, _ROPE_REG, _ROPE_VIT, _EVA02, _EVA02_PACKED, _EVA02_AUTHORS),
    *(_DINOV3_AUTHORS, _DINOV3_AUTHORS_GATED),
)
