"""Files of google-research/vision_transformer: names from before Linen, with one counter over all layers.

The same names with Linen's counters are read as well, and so is the oldest layout of MLP-Mixer. GroupNorm
parameters lie as (1, 1, 1, C).
"""

import dataclasses

from vit_jax.sections import Preprocess
from vit_jax.weights.dialect import GROUP_NORM, Dialect, Row, add_class_slot

BLOCK = "Transformer/encoderblock_{i}"
ATTENTION = "MultiHeadDotProductAttention"

VIT_ROWS = (
    Row("embed/class_token", "cls"),
    Row("embed/positions", "Transformer/posembed_input/pos_embedding"),
    Row("embed/patch/{leaf}", "embedding/{leaf}"),
    Row("embed/stem/conv_root/{leaf}", "conv_root/{leaf}"),
    Row("embed/stem/norm_root/{leaf}", "gn_root/{leaf}", GROUP_NORM),
    Row("embed/stem/stage{i}_unit{j}/conv_proj/{leaf}", "block{i}/unit{j}/conv_proj/{leaf}"),
    Row("embed/stem/stage{i}_unit{j}/norm_proj/{leaf}", "block{i}/unit{j}/gn_proj/{leaf}", GROUP_NORM),
    Row("embed/stem/stage{i}_unit{j}/conv{n}/{leaf}", "block{i}/unit{j}/conv{n}/{leaf}"),
    Row("embed/stem/stage{i}_unit{j}/norm{n}/{leaf}", "block{i}/unit{j}/gn{n}/{leaf}", GROUP_NORM),
    Row("block_{i}/norm1/{leaf}", f"{BLOCK}/LayerNorm_0/{{leaf}}"),
    Row(
        "block_{i}/attention/{part}/{leaf}",
        f"{BLOCK}/{ATTENTION}_1/{{part}}/{{leaf}}",
        also=(f"{BLOCK}/{ATTENTION}_0/{{part}}/{{leaf}}",),
    ),
    Row("block_{i}/norm2/{leaf}", f"{BLOCK}/LayerNorm_2/{{leaf}}", also=(f"{BLOCK}/LayerNorm_1/{{leaf}}",)),
    Row(
        "block_{i}/mlp/up/{leaf}",
        f"{BLOCK}/MlpBlock_3/Dense_0/{{leaf}}",
        also=(f"{BLOCK}/MlpBlock_0/Dense_0/{{leaf}}",),
    ),
    Row(
        "block_{i}/mlp/down/{leaf}",
        f"{BLOCK}/MlpBlock_3/Dense_1/{{leaf}}",
        also=(f"{BLOCK}/MlpBlock_0/Dense_1/{{leaf}}",),
    ),
    Row("norm/{leaf}", "Transformer/encoder_norm/{leaf}"),
    Row("pool/pre_logits/{leaf}", "pre_logits/{leaf}"),
    Row("head/{leaf}", "head/{leaf}"),
)

MIXER_ROWS = (
    Row("embed/patch/{leaf}", "stem/{leaf}"),
    Row("block_{i}/norm1/{leaf}", "MixerBlock_{i}/LayerNorm_0/{leaf}"),
    Row("block_{i}/token_mlp/up/{leaf}", "MixerBlock_{i}/token_mixing/Dense_0/{leaf}"),
    Row("block_{i}/token_mlp/down/{leaf}", "MixerBlock_{i}/token_mixing/Dense_1/{leaf}"),
    Row("block_{i}/norm2/{leaf}", "MixerBlock_{i}/LayerNorm_1/{leaf}"),
    Row("block_{i}/mlp/up/{leaf}", "MixerBlock_{i}/channel_mixing/Dense_0/{leaf}"),
    Row("block_{i}/mlp/down/{leaf}", "MixerBlock_{i}/channel_mixing/Dense_1/{leaf}"),
    Row("norm/{leaf}", "pre_head_layer_norm/{leaf}"),
    Row("head/{leaf}", "head/{leaf}"),
)


def _old_mlp(ours: str, theirs: str) -> tuple[Row, ...]:
    return tuple(
        Row(f"block_{{i}}/{ours}/{layer}/{leaf}", f"{OLD_BLOCK}/{theirs}/{leaf}{number}")
        for layer, number in (("up", 1), ("down", 2))
        for leaf in ("kernel", "bias")
    )


OLD_BLOCK = "Mixer/encoderblock_{i}"
OLD_MIXER_ROWS = (
    Row("embed/patch/{leaf}", "embedding/{leaf}"),
    Row("block_{i}/norm1/{leaf}", f"{OLD_BLOCK}/LayerNorm_0/{{leaf}}"),
    *_old_mlp("token_mlp", "token_mixing_phase_0"),
    # Second in order: 1 by Linen's counter, 2 or 3 by the one over all layers.
    Row(
        "block_{i}/norm2/{leaf}",
        f"{OLD_BLOCK}/LayerNorm_1/{{leaf}}",
        also=(f"{OLD_BLOCK}/LayerNorm_2/{{leaf}}", f"{OLD_BLOCK}/LayerNorm_3/{{leaf}}"),
    ),
    *_old_mlp("mlp", "channel_mixing_phase_0"),
    Row("norm/{leaf}", "Mixer/encoder_norm/{leaf}"),
    Row("head/{leaf}", "head/{leaf}"),
)

# Squashed to a square without regard to aspect, pixels from -1 to 1.
PREPROCESS = Preprocess(resize="squash", filter="tf_bilinear", resizer="exact", mean=(0.5,), std=(0.5,))

VIT = Dialect(
    name="official",
    variant="official",
    rows=VIT_ROWS,
    holds=lambda model: model.family == "vit",
    preprocess=lambda model: PREPROCESS,
    pack=add_class_slot,
    class_slot=True,
)
MIXER = dataclasses.replace(VIT, rows=MIXER_ROWS, holds=lambda model: model.family == "mixer")
OLD_MIXER = dataclasses.replace(VIT, variant="oldest Mixer", rows=OLD_MIXER_ROWS, holds=lambda model: False)
DIALECTS = (VIT, MIXER, OLD_MIXER)
