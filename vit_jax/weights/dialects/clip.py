"""Image towers of CLIP: the names of OpenAI and open_clip, and of Hugging Face. arXiv:2103.00020.

The projection to the space of texts is a linear layer before the head. OpenAI's models have the quick GELU,
open_clip's mostly the exact one, which no array tells.
"""

import dataclasses

from vit_jax import pixels
from vit_jax.sections import Model, Preprocess
from vit_jax.weights.dialect import (
    DENSE,
    ROWS,
    Dialect,
    Layout,
    Row,
    add_class_slot,
    biasless,
    conv,
    dense,
    fused,
    norm,
    out,
)
from vit_jax.weights.dialects.huggingface import SIGLIP_BODY, TEXT, Tree

TOKEN = Layout(lambda a_d, h: a_d[None, None], lambda a_11d: a_11d[0, 0])
BLOCK = "transformer.resblocks.{i}"
PREPROCESS = Preprocess(resize="crop", crop_fraction=1.0, filter="pil_bicubic", **pixels.CLIP)

_OPEN = Dialect(
    name="clip",
    variant="CLIP of OpenAI and open_clip",
    rows=(
        Row("embed/class_token", "class_embedding", TOKEN),
        Row("embed/positions", "positional_embedding", ROWS),
        *biasless(conv("embed/patch", "conv1")),
        *norm("embed/norm", "ln_pre"),
        *norm("block_{i}/norm1", f"{BLOCK}.ln_1"),
        *fused("block_{i}/attention", f"{BLOCK}.attn.in_proj", "_"),
        *out("block_{i}/attention/out", f"{BLOCK}.attn.out_proj"),
        *norm("block_{i}/norm2", f"{BLOCK}.ln_2"),
        *dense("block_{i}/mlp/up", f"{BLOCK}.mlp.c_fc"),
        *dense("block_{i}/mlp/down", f"{BLOCK}.mlp.c_proj"),
        *norm("norm", "ln_post"),
        Row("pool/pre_logits/kernel", "proj"),
    ),
    holds=lambda model: model.embed_norm and model.rotary == "none",
    preprocess=lambda model: PREPROCESS,
    pack=add_class_slot,
    prefix="visual.",
    beside_patch="class_embedding",  # others have a conv1, too
    numerics={"norm_eps": 1e-5},
    asked=("gelu",),
    chosen=("gelu",),
    posemb_method="bicubic_antialias",
)


def _config(model: Model, body: Tree, head: Tree) -> Tree:
    kind = "CLIPVisionModelWithProjection" if model.pre_logits else "CLIPVisionModel"
    own = {"intermediate_size": model.mlp_width, "projection_dim": model.pre_logits or model.width}
    return {"model_type": "clip_vision_model", "architectures": [kind], **body, **own, **head}


_HF_ROWS = (
    Row("embed/class_token", "embeddings.class_embedding", TOKEN),
    *(row for row in SIGLIP_BODY if row.ours != "embed/patch/bias" and not row.ours.startswith("norm/")),
    *norm("embed/norm", "pre_layrnorm"),
)
_HF = Dialect(
    name="huggingface",
    variant="clip",
    rows=(
        *_HF_ROWS,
        *norm("norm", "post_layernorm"),
        Row("pool/pre_logits/kernel", "visual_projection.weight", DENSE),
    ),
    holds=lambda model: model.embed_norm and model.class_token,
    preprocess=lambda model: PREPROCESS,
    fits=lambda shapes: "pre_layrnorm.weight" in shapes,
    pack=add_class_slot,
    prefix="vision_model.",
    prefixed=lambda name, model: bool(model.pre_logits) and name != "visual_projection.weight",
    ignored=TEXT
    | {r"text_projection\.weight": "the text tower", r"embeddings\.position_ids": "counts positions"},
    numerics={"gelu": "quick", "norm_eps": 1e-5},
    posemb_method="bicubic",
    config=_config,
)
_HF_CLASSIFIER = dataclasses.replace(
    _HF,
    variant="clip classifier",
    rows=(*_HF_ROWS, *dense("head", "classifier")),
    holds=lambda model: False,  # its classes want arrays that they do not use
    fits=lambda shapes: {"pre_layrnorm.weight", "classifier.weight"} <= shapes.keys(),
    ignored=_HF.ignored | {r"post_layernorm\..+": "the classifier pools tokens without it"},
    numerics=_HF.numerics | {"pooling": "gap"},
)
DIALECTS = (_OPEN, _HF, _HF_CLASSIFIER)
