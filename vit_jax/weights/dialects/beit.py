"""BEiT, whose blocks have a bias for relative positions, in the names of timm, its authors and Hugging Face.

arXiv:2106.08254. Keys have no bias. In pretraining all blocks share one table: such files are refused.
"""

import dataclasses
from typing import Any

from vit_jax import pixels
from vit_jax.sections import Model, Preprocess
from vit_jax.weights.dialect import Dialect, Row, dense, norm
from vit_jax.weights.dialects import huggingface, timm_rotary
from vit_jax.weights.dialects.timm import BLOCK, GELU_MLP, MASK

INDEX = "computed from the shapes"
PREPROCESS = Preprocess(resize="crop", filter="pil_bicubic", crop_fraction=0.9, **pixels.HALF)


def _relative(theirs: str) -> Row:
    return Row("block_{i}/attention/relative_bias", f"{theirs}relative_position_bias_table")


TIMM = Dialect(
    name="timm",
    variant="BEiT",
    rows=(
        _relative(f"{BLOCK}.attn."),
        *timm_rotary.BODY,
        *timm_rotary.BIASES_APART,
        *GELU_MLP,
    ),
    holds=lambda model: model.relative_bias,
    preprocess=lambda model: PREPROCESS,
    fits=lambda shapes: "blocks.0.attn.relative_position_bias_table" in shapes,
    numerics={"gelu": "exact", "norm_eps": 1e-6},
    ignored={
        r"blocks\.\d+\.attn\.relative_position_index": INDEX,
        "mask_token": MASK,
        r"lm_head\..+": "predicts masked patches, in pretraining only",
    },
)


def _config(model: Model, body: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    own = {
        "intermediate_size": model.mlp_width,
        "layer_scale_init_value": model.layer_scale,
        "use_relative_position_bias": True,
        "use_absolute_position_embeddings": model.posemb == "learned",
        "use_mean_pooling": model.final_norm == "pooled",
    }
    task = "ForImageClassification" if model.classes else "Model"
    return {"model_type": "beit", "architectures": [f"Beit{task}"], **body, **own, **head}


ATTENTION = f"{huggingface.LAYER}.attention.attention."
HUGGINGFACE = dataclasses.replace(
    huggingface.VIT,
    variant="beit",
    rows=(
        _relative(f"{ATTENTION}relative_position_bias."),
        Row("block_{i}/scale{n}/gamma", f"{huggingface.LAYER}.lambda_{{n}}"),
        *huggingface.BODY,
        *norm("pool/norm", "pooler.layernorm"),
        *dense("head", "classifier"),
    ),
    holds=lambda model: model.relative_bias and model.layer_scale > 0,
    preprocess=lambda model: huggingface.SQUASHED,
    fits=lambda shapes: any(name.endswith("relative_position_bias_table") for name in shapes),
    lacks=lambda model: [],
    prefix="beit.",
    ignored={r"encoder\.layer\.\d+\..+relative_position_index": INDEX, r"embeddings\.mask_token": MASK},
    config=_config,
)
DIALECTS = (TIMM, HUGGINGFACE)
