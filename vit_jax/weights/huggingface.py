"""Files and folders of Hugging Face transformers: ViT, DeiT, DINOv2 (with registers), SigLIP's vision tower.

Names are those that `save_pretrained` writes, before and after version 5. A folder's config.json tells GELU,
epsilon, heads and image size; a file alone is read with its family's defaults.
"""

from collections.abc import Callable

from vit_jax.sections import Model, Preprocess
from vit_jax.weights.dialect import TorchDialect, add_class_slot, merge_class_slot
from vit_jax.weights.parts import ROWS, Part, Shape, Table, conv, dense, fused, norm, out, project
from vit_jax.weights.timm import CROPPED, MASK

EMBED = (
    Part("embed/class_token", "embeddings.cls_token"),
    Part("embed/positions", "embeddings.position_embeddings"),
    *conv("embed/patch", "embeddings.patch_embeddings.projection"),
)
LAYER = "encoder.layer.{i}"
ATTENTION = (
    *(
        row
        for name in ("query", "key", "value")
        for row in project(f"block_{{i}}/attention/{name}", f"{LAYER}.attention.attention.{name}")
    ),
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
    Part("embed/distill_token", "embeddings.distillation_token"),
    *dense("head", "cls_classifier"),
    *dense("head_distill", "distillation_classifier"),
)


def _dinov2(mlp: tuple[Part, ...]) -> Table:
    scales = (Part(f"block_{{i}}/scale{n}/gamma", f"{LAYER}.layer_scale{n}.lambda1") for n in (1, 2))
    norms = (*norm("block_{i}/norm1", f"{LAYER}.norm1"), *norm("block_{i}/norm2", f"{LAYER}.norm2"))
    registers = Part("embed/registers", "embeddings.register_tokens")
    return Table((*EMBED, *ATTENTION, *norms, *scales, registers, *mlp, *norm("norm", "layernorm")))


GELU_MLP = (*dense("block_{i}/mlp/up", f"{LAYER}.mlp.fc1"), *dense("block_{i}/mlp/down", f"{LAYER}.mlp.fc2"))
SWIGLU_MLP = (
    *dense("block_{i}/mlp/gate", f"{LAYER}.mlp.weights_in", 0, 2),
    *dense("block_{i}/mlp/up", f"{LAYER}.mlp.weights_in", 1, 2),
    *dense("block_{i}/mlp/down", f"{LAYER}.mlp.weights_out"),
)

SIGLIP_LAYER = "encoder.layers.{i}"
SIGLIP_BODY = (
    Part("embed/positions", "embeddings.position_embedding.weight", ROWS),
    *conv("embed/patch", "embeddings.patch_embedding"),
    *(
        row
        for name in ("query", "key", "value")
        for row in project(f"block_{{i}}/attention/{name}", f"{SIGLIP_LAYER}.self_attn.{name[0]}_proj")
    ),
    *out("block_{i}/attention/out", f"{SIGLIP_LAYER}.self_attn.out_proj"),
    *norm("block_{i}/norm1", f"{SIGLIP_LAYER}.layer_norm1"),
    *norm("block_{i}/norm2", f"{SIGLIP_LAYER}.layer_norm2"),
    *dense("block_{i}/mlp/up", f"{SIGLIP_LAYER}.mlp.fc1"),
    *dense("block_{i}/mlp/down", f"{SIGLIP_LAYER}.mlp.fc2"),
    *norm("norm", "post_layernorm"),
)
SIGLIP_MAP = (
    Part("pool/map/probe", "head.probe"),
    *fused("pool/map/attention", "head.attention.in_proj", "_"),
    *out("pool/map/attention/out", "head.attention.out_proj"),
    *norm("pool/map/norm", "head.layernorm"),
    *dense("pool/map/mlp/up", "head.mlp.fc1"),
    *dense("pool/map/mlp/down", "head.mlp.fc2"),
)
TEXT = {r"text_model\..+": "the text tower", r"logit_(scale|bias)": "pairs images with texts"}


def _family(
    variant: str,
    table: Table,
    eps: float,
    preprocess: Preprocess,
    holds: Callable[[Model], bool],
    *,
    gelu: str = "exact",
    ignored: dict[str, str] | None = None,
    fits: Callable[[dict[str, Shape]], bool] = lambda shapes: True,
    slot: bool = True,
) -> TorchDialect:
    return TorchDialect(
        name="huggingface",
        variant=variant,
        table=table,
        ignored=ignored or {},
        numerics={"gelu": gelu, "norm_eps": eps},
        posemb_method="bicubic",
        preprocess=lambda model: preprocess,
        holds=holds,
        fits=fits,
        pack=add_class_slot if slot else merge_class_slot,
    )


def _is_vit(model: Model) -> bool:
    return model.class_token and not (model.layer_scale or model.distill_token)


SQUASHED = Preprocess(resize="squash", filter="pil_bicubic", mean=(0.5,), std=(0.5,))
VIT_PREPROCESS = Preprocess(resize="squash", filter="pil_bilinear", mean=(0.5,), std=(0.5,))

# In the order in which they are tried when a model is written.
FAMILIES = (
    _family("vit", Table(VIT_ROWS), 1e-12, VIT_PREPROCESS, _is_vit),
    _family("deit", Table(DEIT_ROWS), 1e-12, CROPPED, lambda model: model.distill_token),
    _family(
        "dinov2",
        _dinov2(GELU_MLP),
        1e-6,
        CROPPED,
        lambda model: bool(model.layer_scale) and model.mlp == "gelu",
        ignored=MASK,
    ),
    _family(
        "dinov2 with SwiGLU",
        _dinov2(SWIGLU_MLP),
        1e-6,
        CROPPED,
        lambda model: bool(model.layer_scale) and model.mlp == "swiglu",
        ignored=MASK,
        fits=lambda shapes: "encoder.layer.0.mlp.weights_in.weight" in shapes,
    ),
    _family(
        "siglip",
        Table((*SIGLIP_BODY, *SIGLIP_MAP)),
        1e-6,
        SQUASHED,
        lambda model: model.pooling == "map" and not model.class_token,
        gelu="tanh",
        ignored=TEXT,
        fits=lambda shapes: "classifier.weight" not in shapes,
        slot=False,
    ),
    _family(
        "siglip classifier",
        Table((*SIGLIP_BODY, *dense("head", "classifier"))),
        1e-6,
        SQUASHED,
        lambda model: model.pooling == "gap" and not model.class_token,
        gelu="tanh",
        ignored=TEXT | {r"head\..+": "the classifier pools by the mean instead"},
        fits=lambda shapes: "classifier.weight" in shapes,
        slot=False,
    ),
)
