"""The oldest layout of MLP-Mixer files. Read, never written."""

from vit_jax.weights import official
from vit_jax.weights.names import Names, Row

BLOCK = "Mixer/encoderblock_{i}"


def _mlp(ours: str, theirs: str) -> tuple[Row, ...]:
    return tuple(
        Row(f"block_{{i}}/{ours}/{layer}/{leaf}", f"{BLOCK}/{theirs}/{leaf}{number}")
        for layer, number in (("up", 1), ("down", 2))
        for leaf in ("kernel", "bias")
    )


ROWS = (
    Row("embed/patch/{leaf}", "embedding/{leaf}"),
    Row("block_{i}/norm1/{leaf}", f"{BLOCK}/LayerNorm_0/{{leaf}}"),
    *_mlp("token_mlp", "token_mixing_phase_0"),
    # Second in order: 1 by Linen's counter, 2 or 3 by the one over all layers.
    Row(
        "block_{i}/norm2/{leaf}",
        f"{BLOCK}/LayerNorm_1/{{leaf}}",
        also=(f"{BLOCK}/LayerNorm_2/{{leaf}}", f"{BLOCK}/LayerNorm_3/{{leaf}}"),
    ),
    *_mlp("mlp", "channel_mixing_phase_0"),
    Row("norm/{leaf}", "Mixer/encoder_norm/{leaf}"),
    Row("head/{leaf}", "head/{leaf}"),
)

MIXER = official.MIXER._replace(name="oldest Mixer", names=Names(ROWS))
