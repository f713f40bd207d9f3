"""Files of google-research/vision_transformer: names from before Linen, with one counter over all layers.

The same names with Linen's counters are read as well. GroupNorm parameters lie as (1, 1, 1, C).
"""

from vit_jax.sections import Model, Preprocess
from vit_jax.weights.dialect import Dialect, Flat, add_class_slot
from vit_jax.weights.names import Names, Row

BLOCK = "Transformer/encoderblock_{i}"
ATTENTION = "MultiHeadDotProductAttention"

VIT_ROWS = (
    Row("embed/class_token", "cls"),
    Row("embed/positions", "Transformer/posembed_input/pos_embedding"),
    Row("embed/patch/{leaf}", "embedding/{leaf}"),
    Row("embed/stem/conv_root/{leaf}", "conv_root/{leaf}"),
    Row("embed/stem/norm_root/{leaf}", "gn_root/{leaf}"),
    Row("embed/stem/stage{i}_unit{j}/conv_proj/{leaf}", "block{i}/unit{j}/conv_proj/{leaf}"),
    Row("embed/stem/stage{i}_unit{j}/norm_proj/{leaf}", "block{i}/unit{j}/gn_proj/{leaf}"),
    Row("embed/stem/stage{i}_unit{j}/conv{n}/{leaf}", "block{i}/unit{j}/conv{n}/{leaf}"),
    Row("embed/stem/stage{i}_unit{j}/norm{n}/{leaf}", "block{i}/unit{j}/gn{n}/{leaf}"),
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

# Squashed to a square without regard to aspect, pixels from -1 to 1.
PREPROCESS = Preprocess(resize="squash", filter="tf_bilinear", resizer="exact", mean=(0.5,), std=(0.5,))


def _pack(params: Flat, model: Model) -> Flat:
    packed = add_class_slot(params, model)
    norms = {
        k: a.reshape(1, 1, 1, -1) for k, a in packed.items() if k.startswith("embed/stem/") and a.ndim == 1
    }
    return packed | norms


VIT = Dialect("official", "vit", Names(VIT_ROWS), "", True, "none", PREPROCESS, _pack)
MIXER = Dialect(
    "official", "mixer", Names(MIXER_ROWS), "", True, "none", PREPROCESS, lambda params, model: params
)
