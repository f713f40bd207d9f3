"""Files of google-research/big_vision: Linen's names, positions of patches alone, MAP, scanned stacks."""

import dataclasses

from vit_jax.sections import Preprocess
from vit_jax.weights.dialect import Dialect, Row, merge_class_slot
from vit_jax.weights.dialects.official import MIXER_ROWS

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

VIT = Dialect(
    name="big_vision",
    variant="big_vision",
    rows=VIT_ROWS,
    holds=lambda model: model.family == "vit",
    preprocess=lambda model: PREPROCESS,
    pack=merge_class_slot,
    prefix="params/",
    absent_posemb="sincos2d",
    stack=("Transformer/encoderblock/", "Transformer/encoderblock_{i}/"),
)
MIXER = dataclasses.replace(VIT, rows=MIXER_ROWS, holds=lambda model: model.family == "mixer", stack=("", ""))
DIALECTS = (VIT, MIXER)
