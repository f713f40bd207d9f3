"""Files of google-research/big_vision: Linen's names, positions of patches alone, MAP, scanned stacks."""

import re
from typing import NamedTuple

from vit_jax.sections import Preprocess
from vit_jax.weights import layout, official
from vit_jax.weights.dialect import Dialect, merge_class_slot
from vit_jax.weights.names import Names, Row

BLOCK = "Transformer/encoderblock_{i}"
ATTENTION = "MultiHeadDotProductAttention_0"

VIT_ROWS = (
    Row("embed/class_token", "cls"),
    Row("embed/positions", "pos_embedding", also=("Transformer/pos_embedding",)),
    Row("embed/patch/{leaf}", "embedding/{leaf}"),
    Row("block_{i}/norm1/{leaf}", f"{BLOCK}/LayerNorm_0/{{leaf}}"),
    Row("block_{i}/attention/{part}/{leaf}", f"{BLOCK}/{ATTENTION}/{{part}}/{{leaf}}"),
    Row("block_{i}/norm2/{leaf}", f"{BLOCK}/LayerNorm_1/{{leaf}}"),
    Row("block_{i}/mlp/up/{leaf}", f"{BLOCK}/MlpBlock_0/Dense_0/{{leaf}}"),
    Row("block_{i}/mlp/down/{leaf}", f"{BLOCK}/MlpBlock_0/Dense_1/{{leaf}}"),
    Row("norm/{leaf}", "Transformer/encoder_norm/{leaf}"),
    # Attention pooling lay at the root while ViT-G was developed.
    Row("pool/map/probe", "MAPHead_0/probe", also=("probe",)),
    Row(
        "pool/map/attention/{part}/{leaf}",
        f"MAPHead_0/{ATTENTION}/{{part}}/{{leaf}}",
        also=(f"{ATTENTION}/{{part}}/{{leaf}}",),
    ),
    Row("pool/map/norm/{leaf}", "MAPHead_0/LayerNorm_0/{leaf}", also=("LayerNorm_0/{leaf}",)),
    Row("pool/map/mlp/up/{leaf}", "MAPHead_0/MlpBlock_0/Dense_0/{leaf}", also=("MlpBlock_0/Dense_0/{leaf}",)),
    Row(
        "pool/map/mlp/down/{leaf}", "MAPHead_0/MlpBlock_0/Dense_1/{leaf}", also=("MlpBlock_0/Dense_1/{leaf}",)
    ),
    Row("pool/pre_logits/{leaf}", "pre_logits/{leaf}"),
    Row("head/{leaf}", "head/{leaf}"),
)

# The short side to 256, then the middle 224.
# resize_small averages areas; an antialiased filter is the nearest thing here
PREPROCESS = Preprocess(resize="crop", crop_fraction=0.875, filter="pil_bilinear", mean=(0.5,), std=(0.5,))

STACK = re.compile(r"Transformer/encoderblock/(.+)")
VIT = Dialect(
    "big_vision", "vit", Names(VIT_ROWS), "params/", False, "sincos2d", PREPROCESS, merge_class_slot
)
MIXER = official.MIXER._replace(name="big_vision", prefix="params/", preprocess=PREPROCESS)


class Slice(NamedTuple):
    """One block's part of an array that holds all blocks of a scanned encoder."""

    name: str
    block: int


def unstack(name: str, shape: tuple[int, ...]) -> list[Slice]:
    """The blocks' slices of a scanned array, none for any other array."""
    match = STACK.fullmatch(name)
    if match is None or not shape or shape[0] > layout.MOST_BLOCKS:
        return []
    return [Slice(f"Transformer/encoderblock_{i}/{match[1]}", i) for i in range(shape[0])]
