"""Files in the names of timm (ViT, DeiT, DeiT III, registers, LayerScale) and of DINOv2's own code.

All of them compute with the exact GELU and an epsilon of 1e-6, and resize positions bicubically.
"""

import dataclasses

from vit_jax import pixels
from vit_jax.sections import Model, Preprocess
from vit_jax.sections.model import PosembMethod
from vit_jax.weights.dialect import (
    Dialect,
    Flat,
    Row,
    Shapes,
    add_class_slot,
    conv,
    dense,
    fused,
    merge_class_slot,
    norm,
    out,
    project,
)

NUMERICS = {"gelu": "exact", "norm_eps": 1e-6}
BLOCK = "blocks.{i}"


COMMON = (
    Row("embed/class_token", "cls_token"),
    Row("embed/positions", "pos_embed"),
    *conv("embed/patch", "patch_embed.proj"),
    *norm("block_{i}/norm{n}", f"{BLOCK}.norm{{n}}"),
    *fused("block_{i}/attention", f"{BLOCK}.attn.qkv"),
    *out("block_{i}/attention/out", f"{BLOCK}.attn.proj"),
    # gamma_1 in the files of DeiT III's authors.
    Row("block_{i}/scale{n}/gamma", f"{BLOCK}.ls{{n}}.gamma", also=(f"{BLOCK}.gamma_{{n}}",)),
    *norm("norm", "norm"),
    *dense("head", "head"),
)
GELU_MLP = (*dense("block_{i}/mlp/up", f"{BLOCK}.mlp.fc1"), *dense("block_{i}/mlp/down", f"{BLOCK}.mlp.fc2"))


def swiglu(packed: str, down: str) -> tuple[Row, ...]:
    """SwiGLU whose gate and up are the halves of one array."""
    gate, up = dense("block_{i}/mlp/gate", packed, 0, 2), dense("block_{i}/mlp/up", packed, 1, 2)
    return *gate, *up, *dense("block_{i}/mlp/down", down)


TIMM_ONLY = (
    Row("embed/distill_token", "dist_token"),
    *dense("head_distill", "head_dist"),
    Row("embed/registers", "reg_token"),
    *norm("embed/norm", "norm_pre"),
    *norm("block_{i}/attention/norm", f"{BLOCK}.attn.norm"),
    *norm("block_{i}/mlp/norm", f"{BLOCK}.mlp.norm"),
    *norm("pool/norm", "fc_norm"),
    *norm("block_{i}/attention/query_norm", f"{BLOCK}.attn.q_norm"),
    *norm("block_{i}/attention/key_norm", f"{BLOCK}.attn.k_norm"),
    Row("pool/map/probe", "attn_pool.latent"),
    *project("pool/map/attention/query", "attn_pool.q"),
    *project("pool/map/attention/key", "attn_pool.kv", 0, 2),
    *project("pool/map/attention/value", "attn_pool.kv", 1, 2),
    *out("pool/map/attention/out", "attn_pool.proj"),
    *norm("pool/map/norm", "attn_pool.norm"),
    *dense("pool/map/mlp/up", "attn_pool.mlp.fc1"),
    *dense("pool/map/mlp/down", "attn_pool.mlp.fc2"),
)
MASK = "stands for masked patches, in pretraining only"
# Masked autoencoders, arXiv:2111.06377, in the names of their authors.
MAE = {"mask_token": MASK, r"decoder_.+": "the decoder of a masked autoencoder"}


def _timm_preprocess(model: Model) -> Preprocess:
    """DeiT, DeiT III and DINOv2, told by a distillation token or LayerScale, use ImageNet's statistics."""
    own = bool(model.distill_token or model.layer_scale)
    fraction = 1.0 if max(model.image_hw) > 224 else 0.9
    statistics = pixels.CLIP if model.embed_norm else pixels.IMAGENET if own else pixels.HALF
    return Preprocess(resize="crop", crop_fraction=fraction, filter="pil_bicubic", **statistics)


# The short side to 256, then the middle 224, as the authors of DINOv2 evaluate.
CROPPED = Preprocess(resize="crop", crop_fraction=224 / 256, filter="pil_bicubic", **pixels.IMAGENET)


def _is_packed(packed: str, shapes: Shapes) -> bool:
    """Whether the first layer of the MLP is twice as wide as the second takes: SwiGLU's two in one."""
    first, second = shapes.get(f"blocks.0.mlp.{packed}.weight"), shapes.get("blocks.0.mlp.fc2.weight")
    return bool(first and second and len(second) == 2 and first[0] == 2 * second[1])


def _is_rotary(shapes: Shapes) -> bool:
    """Whether the names are of timm's Eva: no position but a rotary one, or biases apart."""
    has = lambda name: name in shapes
    turned = has("blocks.0.gamma_1") and not has("pos_embed")
    apart = has("blocks.0.attn.q_bias") or has("blocks.0.attn.q_proj.weight")
    encoder = has("norm_pre.weight") and (
        has("attn_pool.latent") or not (has("norm.weight") or has("fc_norm.weight"))
    )
    return turned or apart or encoder


def _is_tanh_siglip(model: Model) -> bool:
    """The sizes of SigLIP 2 that have the tanh GELU in timm: giantopt, So400m/16, B/32, L/16 at 512 px."""
    large = (model.width, model.patch_size) == (1024, 16) and model.image_hw == (512, 512)
    return not model.class_token and (
        large or (model.width, model.patch_size) in ((1536, 16), (1152, 16), (768, 32))
    )


def _is_residual_post_norm(shapes: Shapes) -> bool:
    """timm's `*_rpn_*`, whose names are any model's: the only ones without biases, scales and token."""
    present = {"fc_norm.weight", "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight"}
    absent = {"blocks.0.attn.qkv.bias", "blocks.0.ls1.gamma", "blocks.0.gamma_1", "cls_token"}
    absent |= {"blocks.0.attn.q_norm.weight", "blocks.0.attn.q_bias", "norm_pre.weight"}
    return present <= shapes.keys() and not absent & shapes.keys()


def _pack_timm(params: Flat, model: Model) -> Flat:
    # timm gives registers positions unless no prefix token has one.
    return merge_class_slot(params, model) if model.registers else params


TIMM = Dialect(
    name="timm",
    variant="timm",
    rows=(*COMMON, *GELU_MLP, *TIMM_ONLY),
    holds=lambda model: (
        model.family == "vit" and model.mlp == "gelu" and model.rotary == "none" and not model.stem_width
    ),
    preprocess=_timm_preprocess,
    fits=lambda s: not (_is_packed("fc1", s) or _is_rotary(s) or "norm_pre.weight" in s),
    pack=_pack_timm,
    ignored=MAE,
    numerics=NUMERICS,
    derived=lambda model: {"gelu": "tanh"} if _is_tanh_siglip(model) else {},
    heads={1536: 16},  # giantopt; DINOv2's giant is the one with SwiGLU
    posemb_method="bicubic_antialias",
)
_RESIDUAL_POST_NORM = dataclasses.replace(
    TIMM,
    variant="timm with norms after branches, as of all models without biases, scales and token",
    holds=lambda model: model.branch_norm == "after" and model.mlp == "gelu",
    fits=_is_residual_post_norm,
    derived=lambda model: {},
    numerics=NUMERICS | {"branch_norm": "after"},
)
_CLIP = dataclasses.replace(
    TIMM,
    variant="timm with a norm before the blocks, as CLIP",
    holds=lambda model: model.embed_norm and model.mlp == "gelu" and model.rotary == "none",
    fits=lambda s: "norm_pre.weight" in s and not (_is_packed("fc1", s) or _is_rotary(s)),
    numerics=NUMERICS | {"norm_eps": 1e-5},
)
_TIMM_SWIGLU = dataclasses.replace(
    TIMM,
    variant="timm with SwiGLU",
    rows=(*COMMON, *swiglu(f"{BLOCK}.mlp.fc1", f"{BLOCK}.mlp.fc2"), *TIMM_ONLY),
    holds=lambda model: model.family == "vit" and model.mlp == "swiglu" and model.rotary == "none",
    fits=lambda shapes: _is_packed("fc1", shapes) and not _is_rotary(shapes),
    heads={},
)
BODY = (
    *(row for row in COMMON if not row.ours.startswith("head")),
    Row("embed/registers", "register_tokens"),
)


def registers_antialias(model: Model) -> dict[str, PosembMethod]:
    """With registers, DINOv2's authors and transformers resize positions with antialiasing; without, not."""
    return {"posemb_method": "bicubic_antialias"} if model.registers else {}


_DINOV2 = Dialect(
    name="dinov2",
    variant="DINOv2",
    rows=(*BODY, *GELU_MLP),
    holds=lambda model: bool(model.layer_scale) and model.mlp == "gelu",
    preprocess=lambda model: CROPPED,
    pack=add_class_slot,
    mask="mask_token",
    ignored={"mask_token": MASK},
    numerics=NUMERICS,
    derived=registers_antialias,
    posemb_method="bicubic",
)
_DINOV2_SWIGLU = dataclasses.replace(
    _DINOV2,
    variant="DINOv2 with SwiGLU",
    rows=(*BODY, *swiglu(f"{BLOCK}.mlp.w12", f"{BLOCK}.mlp.w3")),
    holds=lambda model: bool(model.layer_scale) and model.mlp == "swiglu",
    fits=lambda shapes: "blocks.0.mlp.w12.weight" in shapes,
)
_MIXER = Dialect(
    name="timm",
    variant="timm's Mixer",
    rows=(
        *conv("embed/patch", "stem.proj"),
        *norm("block_{i}/norm{n}", f"{BLOCK}.norm{{n}}"),
        *dense("block_{i}/token_mlp/up", f"{BLOCK}.mlp_tokens.fc1"),
        *dense("block_{i}/token_mlp/down", f"{BLOCK}.mlp_tokens.fc2"),
        *dense("block_{i}/mlp/up", f"{BLOCK}.mlp_channels.fc1"),
        *dense("block_{i}/mlp/down", f"{BLOCK}.mlp_channels.fc2"),
        *norm("norm", "norm"),
        *dense("head", "head"),
    ),
    holds=lambda model: model.family == "mixer",
    preprocess=lambda model: Preprocess(
        resize="crop", crop_fraction=0.875, filter="pil_bicubic", mean=(0.5,), std=(0.5,)
    ),
    numerics=NUMERICS,
)
DIALECTS = (_RESIDUAL_POST_NORM, _CLIP, TIMM, _MIXER, _TIMM_SWIGLU, _DINOV2, _DINOV2_SWIGLU)
