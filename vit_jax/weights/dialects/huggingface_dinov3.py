"""DINOv3 in the names of Hugging Face transformers. arXiv:2508.10104."""

import dataclasses

from vit_jax import pixels
from vit_jax.sections import Model, Preprocess
from vit_jax.weights.dialect import Dialect, Row, apart, conv, dense, norm, out
from vit_jax.weights.dialects.huggingface import Tree
from vit_jax.weights.dialects.timm import MASK

LAYER = "layer.{i}"  # of the encoder; under `model.` in memory


def _rows(mlp: tuple[Row, ...]) -> tuple[Row, ...]:
    rows = (
        Row("embed/class_token", "embeddings.cls_token"),
        Row("embed/registers", "embeddings.register_tokens"),
        *conv("embed/patch", "embeddings.patch_embeddings"),
        *norm("block_{i}/norm{n}", f"{LAYER}.norm{{n}}"),
        *apart("block_{i}/attention", lambda name: f"{LAYER}.attention.{name[0]}_proj"),
        *out("block_{i}/attention/out", f"{LAYER}.attention.o_proj"),
        Row("block_{i}/scale{n}/gamma", f"{LAYER}.layer_scale{{n}}.lambda1"),
        *mlp,
        *norm("norm", "norm"),
    )
    in_memory = lambda row: (f"model.{row.theirs}",) if row.theirs.startswith(LAYER) else ()
    return tuple(row._replace(also=in_memory(row)) for row in rows)


def _config(model: Model, body: Tree, head: Tree) -> Tree:
    biased = {"query_bias": model.qkv_bias != "none", "value_bias": model.qkv_bias != "none"}
    own = {
        "intermediate_size": model.mlp_width,
        "num_register_tokens": model.registers,
        "use_gated_mlp": model.mlp == "swiglu",
        "key_bias": model.qkv_bias == "all",
        "hidden_act": "silu" if model.mlp == "swiglu" else body["hidden_act"],
        "rope_theta": 100.0,
        **biased,
    }
    return {"model_type": "dinov3_vit", "architectures": ["DINOv3ViTModel"], **body, **own, **head}


UP, DOWN = (
    dense("block_{i}/mlp/up", f"{LAYER}.mlp.up_proj"),
    dense("block_{i}/mlp/down", f"{LAYER}.mlp.down_proj"),
)
_DINOV3 = Dialect(
    name="huggingface",
    variant="dinov3",
    rows=_rows((*UP, *DOWN)),
    holds=lambda model: model.rotary == "dinov3" and model.mlp == "gelu",
    preprocess=lambda model: Preprocess(resize="squash", filter="pil_bilinear", **pixels.IMAGENET),
    mask="embeddings.mask_token",
    mask_rank=3,
    ignored={r"embeddings\.mask_token": MASK},
    numerics={"gelu": "exact", "norm_eps": 1e-5, "rotary": "dinov3"},
    heads={1280: 20, 4096: 32},
    posemb_method="bicubic",
    config=_config,
)
_GATED = dataclasses.replace(
    _DINOV3,
    variant="dinov3 with SwiGLU",
    rows=_rows((*dense("block_{i}/mlp/gate", f"{LAYER}.mlp.gate_proj"), *UP, *DOWN)),
    holds=lambda model: model.rotary == "dinov3" and model.mlp == "swiglu",
)
DIALECTS = (_DINOV3, _GATED)
