"""Models of images at their own aspect: timm's NaFlexViT, transformers' SigLIP 2 NaFlex. arXiv:2502.14786.

Their patch embedding is a linear layer of patches that are cut already, [o, y x c]. timm's files do not tell
how positions are resized: where tokens are pooled by attention, without LayerScale, it is as in SigLIP 2.
"""

import dataclasses
import math
from typing import Any

from vit_jax.sections import Model, Preprocess
from vit_jax.weights.dialect import Dialect, Layout, Row, dense
from vit_jax.weights.dialects.huggingface import SIGLIP, SIGLIP_BODY, SIGLIP_MAP, is_conv
from vit_jax.weights.dialects.timm import COMMON, GELU_MLP, NUMERICS, TIMM_ONLY

TOKENS = 576  # that timm evaluates its models with: those of 384 x 384 pixels


def _cut(a_oi: Any, heads: int) -> Any:
    """The kernel [p, p, c, o], of 3 channels where that makes square patches."""
    i = a_oi.shape[1]
    channels = 3 if 3 * math.isqrt(i // 3) ** 2 == i else 1
    p = math.isqrt(i // channels)
    return a_oi.T.reshape(p, p, channels, -1)


def _square(a_1nd: Any) -> Any:
    side = math.isqrt(a_1nd.shape[1])
    return a_1nd.reshape(1, side, side, -1)


def _rows(a_1hwd: Any, heads: int) -> Any:
    _, h, w, d = a_1hwd.shape
    if h != w:
        raise ValueError(f"positions of {h}x{w} patches do not tell their shape once they are in a row")
    return a_1hwd.reshape(1, h * w, d)


CUT = Layout(_cut, lambda a_ppco: a_ppco.reshape(-1, a_ppco.shape[-1]).T)
GRID = Layout(_rows, _square)


def _is_siglip(model: Model) -> dict[str, Any]:
    own = model.pooling == "map" and not (model.registers or model.layer_scale)
    return {"gelu": "tanh", "posemb_method": "bilinear_antialias"} if own else {}


def _holds(model: Model) -> bool:
    plain = model.family == "vit" and model.mlp == "gelu" and model.rotary == "none"
    learned = model.posemb == "learned" and not (model.class_token and model.posemb_class_slot)
    square = model.grid_hw[0] == model.grid_hw[1] and not model.stem_width
    # timm's attention pooling does not see registers, ours does.
    return plain and learned and square and not (model.pooling == "map" and model.registers)


_TIMM = Dialect(
    name="naflexvit",
    variant="timm's NaFlexViT",
    rows=(
        Row("embed/class_token", "embeds.cls_token"),
        Row("embed/registers", "embeds.reg_token"),
        Row("embed/positions", "embeds.pos_embed", GRID),
        Row("embed/patch/kernel", "embeds.proj.weight", CUT),
        Row("embed/patch/bias", "embeds.proj.bias"),
        *(row for row in (*COMMON, *GELU_MLP, *TIMM_ONLY) if not row.ours.startswith("embed/")),
    ),
    holds=_holds,
    preprocess=lambda model: Preprocess(resize="native", filter="pil_bicubic", max_tokens=TOKENS),
    fits=lambda shapes: not {"attn_pool.latent", "embeds.reg_token"} <= shapes.keys(),
    numerics=NUMERICS,
    derived=_is_siglip,
    posemb_method="bicubic_antialias",
)


BODY = tuple(row._replace(layout=CUT) if row.ours == "embed/patch/kernel" else row for row in SIGLIP_BODY)
_SIGLIP2 = dataclasses.replace(
    SIGLIP,
    variant="siglip2 naflex",
    rows=(*BODY, *SIGLIP_MAP),
    holds=lambda model: False,  # written in the names of SigLIP, which hold the same
    preprocess=lambda model: Preprocess(resize="native", filter="pil_bilinear", max_tokens=256),
    fits=lambda shapes: not is_conv(shapes) and "classifier.weight" not in shapes,
    posemb_method="bilinear_antialias",
    config=None,
)
_SIGLIP2_CLASSIFIER = dataclasses.replace(
    _SIGLIP2,
    variant="siglip2 naflex classifier",
    rows=(*BODY, *dense("head", "classifier")),
    fits=lambda shapes: not is_conv(shapes) and "classifier.weight" in shapes,
    ignored=_SIGLIP2.ignored | {r"head\..+": "the classifier pools by the mean instead"},
)
DIALECTS = (_TIMM, _SIGLIP2, _SIGLIP2_CLASSIFIER)
