"""Files and folders of Hugging Face transformers: ViT, DeiT, DINOv2 (with registers), SigLIP's vision tower.

Names are those that `save_pretrained` writes, before and after version 5. A folder's config.json tells GELU,
epsilon, heads and image size; a file alone is read with its family's defaults.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from vit_jax.fields import fail
from vit_jax.sections import Model, Preprocess
from vit_jax.weights.dialect import (
    ROWS,
    Dialect,
    Row,
    Shapes,
    add_class_slot,
    apart,
    conv,
    dense,
    fused,
    merge_class_slot,
    norm,
    out,
)
from vit_jax.weights.dialects.timm import CROPPED, MAE, MASK, registers_antialias

Tree = dict[str, Any]

EMBED = (
    Row("embed/class_token", "embeddings.cls_token"),
    Row("embed/positions", "embeddings.position_embeddings"),
    *conv("embed/patch", "embeddings.patch_embeddings.projection"),
)
LAYER = "encoder.layer.{i}"
ATTENTION = (
    *apart("block_{i}/attention", lambda name: f"{LAYER}.attention.attention.{name}"),
    *out("block_{i}/attention/out", f"{LAYER}.attention.output.dense"),
)
BODY = (
    *EMBED,
    *ATTENTION,
    *norm("block_{i}/norm1", f"{LAYER}.layernorm_before"),
    *norm("block_{i}/norm2", f"{LAYER}.layernorm_after"),
    *dense("block_{i}/mlp/up", f"{LAYER}.intermediate.dense"),
    *dense("block_{i}/mlp/down", f"{LAYER}.output.dense"),
    *norm("norm", "layernorm"),
)
VIT_ROWS = (*BODY, *dense("pool/pre_logits", "pooler.dense"), *dense("head", "classifier"))
DEIT_ROWS = (
    *BODY,
    Row("embed/distill_token", "embeddings.distillation_token"),
    *dense("head", "cls_classifier"),
    *dense("head_distill", "distillation_classifier"),
)


def _dinov2_rows(mlp: tuple[Row, ...]) -> tuple[Row, ...]:
    norms = norm("block_{i}/norm{n}", f"{LAYER}.norm{{n}}")
    scales = Row("block_{i}/scale{n}/gamma", f"{LAYER}.layer_scale{{n}}.lambda1")
    registers = Row("embed/registers", "embeddings.register_tokens")
    return *EMBED, *ATTENTION, *norms, scales, registers, *mlp, *norm("norm", "layernorm")


GELU_MLP = (*dense("block_{i}/mlp/up", f"{LAYER}.mlp.fc1"), *dense("block_{i}/mlp/down", f"{LAYER}.mlp.fc2"))
SWIGLU_MLP = (
    *dense("block_{i}/mlp/gate", f"{LAYER}.mlp.weights_in", 0, 2),
    *dense("block_{i}/mlp/up", f"{LAYER}.mlp.weights_in", 1, 2),
    *dense("block_{i}/mlp/down", f"{LAYER}.mlp.weights_out"),
)

SIGLIP_LAYER = "encoder.layers.{i}"
SIGLIP_BODY = (
    Row("embed/positions", "embeddings.position_embedding.weight", ROWS),
    *conv("embed/patch", "embeddings.patch_embedding"),
    *apart("block_{i}/attention", lambda name: f"{SIGLIP_LAYER}.self_attn.{name[0]}_proj"),
    *out("block_{i}/attention/out", f"{SIGLIP_LAYER}.self_attn.out_proj"),
    *norm("block_{i}/norm{n}", f"{SIGLIP_LAYER}.layer_norm{{n}}"),
    *dense("block_{i}/mlp/up", f"{SIGLIP_LAYER}.mlp.fc1"),
    *dense("block_{i}/mlp/down", f"{SIGLIP_LAYER}.mlp.fc2"),
    *norm("norm", "post_layernorm"),
)
SIGLIP_MAP = (
    Row("pool/map/probe", "head.probe"),
    *fused("pool/map/attention", "head.attention.in_proj", "_"),
    *out("pool/map/attention/out", "head.attention.out_proj"),
    *norm("pool/map/norm", "head.layernorm"),
    *dense("pool/map/mlp/up", "head.mlp.fc1"),
    *dense("pool/map/mlp/down", "head.mlp.fc2"),
)
TEXT = {r"text_model\..+": "the text tower", r"logit_(scale|bias)": "pairs images with texts"}


def _classes_and_body(name: str, model: Model) -> bool:
    """The body of a classifier has a prefix; a model without a head has none."""
    return bool(model.classes) and "classifier" not in name


def _vit_config(kind: str, stem: str, teacher: str = "") -> Callable[[Model, Tree, Tree], Tree]:
    def config(model: Model, body: Tree, head: Tree) -> Tree:
        name = f"{stem}ForImageClassification{teacher}" if model.classes else f"{stem}Model"
        pooler = {"pooler_act": "tanh", "pooler_output_size": model.pre_logits or model.width}
        own = {"intermediate_size": model.mlp_width, "qkv_bias": model.qkv_bias == "all", **pooler}
        return {"model_type": kind, "architectures": [name], **body, **own, **head}

    return config


def _dinov2_config(model: Model, body: Tree, head: Tree) -> Tree:
    registers = {"num_register_tokens": model.registers} if model.registers else {}
    kind, stem = ("dinov2_with_registers", "Dinov2WithRegisters") if registers else ("dinov2", "Dinov2")
    task = "ForImageClassification" if model.classes else "Model"
    own = {"use_mask_token": True, **_dinov2_mlp(model), **registers}
    return {"model_type": kind, "architectures": [f"{stem}{task}"], **body, **own, **head}


def _dinov2_mlp(model: Model) -> Tree:
    d, f = model.width, model.mlp_width
    if model.mlp == "gelu":
        if f % d:
            fail(
                f"DINOv2's config has only whole ratios, not mlp_width/width={f}/{d}: choose another dialect"
            )
        return {"mlp_ratio": f // d, "use_swiglu_ffn": False}
    ratio = next((r for r in range(1, 17) if (int(d * r * 2 / 3) + 7) // 8 * 8 == f), None)
    if ratio is None:
        fail(f"no ratio of DINOv2's config gives a SwiGLU of {f} for width {d}: choose another dialect")
    return {"mlp_ratio": ratio, "use_swiglu_ffn": True}


def _siglip_config(model: Model, body: Tree, head: Tree) -> Tree:
    pooled = {"intermediate_size": model.mlp_width, "vision_use_head": model.pooling == "map"}
    own = {"model_type": "siglip_vision_model", **body, **pooled}
    if model.pooling == "map":
        return own | {"architectures": ["SiglipVisionModel"]}
    kind = "SiglipForImageClassification"
    return {"model_type": "siglip", "architectures": [kind], "vision_config": own, **head}


def is_conv(shapes: Shapes) -> bool:
    """Whether patches are cut by a convolution: SigLIP 2's NaFlex has a linear layer of the same name."""
    return len(shapes.get("embeddings.patch_embedding.weight", ())) != 2


SQUASHED = Preprocess(resize="squash", filter="pil_bicubic", mean=(0.5,), std=(0.5,))
VIT_PREPROCESS = Preprocess(resize="squash", filter="pil_bilinear", mean=(0.5,), std=(0.5,))

VIT = Dialect(
    name="huggingface",
    variant="vit",
    rows=VIT_ROWS,
    holds=lambda model: (
        model.class_token and not (model.layer_scale or model.distill_token or model.embed_norm)
    ),
    preprocess=lambda model: VIT_PREPROCESS,
    pack=add_class_slot,
    lacks=lambda model: ["pool/pre_logits (beside a head)"] if model.pre_logits and model.classes else [],
    prefix="vit.",
    prefixed=_classes_and_body,
    ignored=MAE | {r"decoder\..+": "the decoder of a masked autoencoder", r"embeddings\.mask_token": MASK},
    numerics={"gelu": "exact", "norm_eps": 1e-12},
    posemb_method="bicubic",
    config=_vit_config("vit", "ViT"),
)
DEIT = dataclasses.replace(
    VIT,
    variant="deit",
    rows=DEIT_ROWS,
    holds=lambda model: model.heads_distill,
    preprocess=lambda model: CROPPED,
    lacks=lambda model: [],
    prefix="deit.",
    ignored=VIT.ignored
    | {r"pooler\.dense\..+": "the pooler of a bare DeiT, which no published model trained"},
    config=_vit_config("deit", "DeiT", "WithTeacher"),
)
DEIT_ONE_HEAD = dataclasses.replace(
    DEIT,
    variant="deit without a second head",
    rows=(
        *(row for row in DEIT_ROWS if not row.ours.startswith("head")),
        *dense("head", "classifier"),
    ),
    holds=lambda model: model.distill_token and not model.distill_head,
    config=_vit_config("deit", "DeiT"),
)
DINOV2 = Dialect(
    name="huggingface",
    variant="dinov2",
    rows=_dinov2_rows(GELU_MLP),
    holds=lambda model: bool(model.layer_scale) and model.mlp == "gelu" and model.rotary == "none",
    preprocess=lambda model: CROPPED,
    pack=add_class_slot,
    mask="embeddings.mask_token",
    ignored={r"embeddings\.mask_token": MASK},
    numerics={"gelu": "exact", "norm_eps": 1e-6},
    derived=registers_antialias,
    posemb_method="bicubic",
    config=_dinov2_config,
)
DINOV2_SWIGLU = dataclasses.replace(
    DINOV2,
    variant="dinov2 with SwiGLU",
    rows=_dinov2_rows(SWIGLU_MLP),
    holds=lambda model: bool(model.layer_scale) and model.mlp == "swiglu" and model.rotary == "none",
    fits=lambda shapes: "encoder.layer.0.mlp.weights_in.weight" in shapes,
)


def _classifier(body: Dialect, name: str, registers: bool) -> Dialect:
    """DINOv2 with a head on the class token beside the mean of patches."""
    return dataclasses.replace(
        body,
        variant=f"{body.variant}, classifier{' with registers' if registers else ''}",
        rows=(*body.rows, *dense("head", "classifier")),
        holds=lambda m: body.holds(m) and m.pooling == "token_gap" and bool(m.registers) == registers,
        fits=lambda shapes: body.fits(shapes) and ("embeddings.register_tokens" in shapes) == registers,
        prefix=f"{name}.",
        prefixed=_classes_and_body,
    )


CLASSIFIERS = tuple(
    _classifier(body, name, registers)
    for body in (DINOV2, DINOV2_SWIGLU)
    for name, registers in (("dinov2", False), ("dinov2_with_registers", True))
)
SIGLIP = Dialect(
    name="huggingface",
    variant="siglip",
    rows=(*SIGLIP_BODY, *SIGLIP_MAP),
    holds=lambda model: model.pooling == "map" and not model.class_token,
    preprocess=lambda model: SQUASHED,
    fits=lambda shapes: is_conv(shapes) and "classifier.weight" not in shapes,
    pack=merge_class_slot,
    ignored=TEXT,
    numerics={"gelu": "tanh", "norm_eps": 1e-6},
    posemb_method="bicubic",
    config=_siglip_config,
)
SIGLIP_CLASSIFIER = dataclasses.replace(
    SIGLIP,
    variant="siglip classifier",
    rows=(*SIGLIP_BODY, *dense("head", "classifier")),
    holds=lambda model: model.pooling == "gap" and not model.class_token,
    fits=lambda shapes: is_conv(shapes) and "classifier.weight" in shapes,
    prefix="vision_model.",
    prefixed=_classes_and_body,
    ignored=TEXT | {r"head\..+": "the classifier pools by the mean instead"},
)
DIALECTS = (VIT, DEIT, DEIT_ONE_HEAD, *CLASSIFIERS, DINOV2, DINOV2_SWIGLU, SIGLIP, SIGLIP_CLASSIFIER)
