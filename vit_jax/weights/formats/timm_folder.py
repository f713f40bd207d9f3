"""config.json of timm and open_clip_config.json: numerics, heads, image size, class names, preprocessing."""

import dataclasses
import math
import re
from typing import Any

from vit_jax import pixels
from vit_jax.fields import fail
from vit_jax.paths import Path
from vit_jax.sections import Preprocess
from vit_jax.weights.formats.facts import (
    FolderFacts,
    Tree,
    class_names,
    few,
    hw_of,
    refuse_unknown,
)

FILTERS = {"bilinear": "pil_bilinear", "bicubic": "pil_bicubic"}

# What the name of a timm model tells beside its arrays.
ARCHITECTURES: dict[str, Tree] = {
    r".*": {"gelu": "exact"},
    r".*quickgelu.*": {"gelu": "quick"},
    r"vit_(base_patch32_siglip(_gap)?_256|large_patch16_siglip(_gap)?_512|so400m_patch16_.*|giantopt_.*)": {
        "gelu": "tanh"
    },
    r"naflexvit_.*_siglip": {"gelu": "tanh"},
    r".*_rpn_.*": {"branch_norm": "after"},
    r"(?!.*_rpn_).*": {"branch_norm": "before"},
}
TIMM_HEADS = {"vit_base_patch16_gap_224": 16}  # of an unusual width
POOLING = {"avg": "gap", "token": "token", "map": "map"}
GELUS = {"gelu_tanh": "tanh", "quick_gelu": "quick", "gelu": "exact"}
# Keys of config.json that say nothing beside the others: `label_descriptions` explains names.
TOP = {"architecture", "num_classes", "num_features", "global_pool", "label_names", "label_descriptions"}
TOP |= {"model_args", "pretrained_cfg"}
# Keys of `pretrained_cfg` that say nothing of the model or its images: where weights come from, what timm
# asks when it changes a model, and the larger images that `test_*` name for a second evaluation.
CFG_SAYS_NOTHING = {
    *("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "architecture"),
    *(
        "test_input_size",
        "test_crop_pct",
        "test_pool_size",
        "min_input_size",
        "fixed_input_size",
        "pool_size",
    ),
    *("first_conv", "classifier", "label_descriptions"),
    *("license", "description", "origin_url", "paper_name", "paper_ids", "notes"),
}
CFG = {
    "input_size",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "mean",
    "std",
    "num_classes",
    "label_names",
    "tag",
}
# Arguments of timm's models that the arrays tell as well, or that are for training only.
TOLD_BY_ARRAYS = {
    *(
        "patch_size",
        "in_chans",
        "num_classes",
        "embed_dim",
        "depth",
        "mlp_ratio",
        "class_token",
        "reg_tokens",
    ),
    *("num_reg_tokens", "no_embed_class", "init_values", "qkv_bias", "qkv_fused", "qk_norm", "pre_norm"),
    *("fc_norm", "use_fc_norm", "use_abs_pos_emb", "swiglu_mlp", "scale_mlp", "scale_attn_inner"),
    *("dynamic_img_size", "strict_img_size", "weight_init", "fix_init"),
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
}
ARGUMENTS = {"num_heads", "act_layer", "img_size", "global_pool"}


def read_timm(tree: Tree, path: Path) -> FolderFacts:
    """What timm's config.json tells, all of it. Raises UserError for what is not done here."""
    cfg, arguments = tree.get("pretrained_cfg") or {}, tree.get("model_args") or {}
    refuse_unknown(tree, TOP, path)
    refuse_unknown(cfg, CFG | CFG_SAYS_NOTHING, path, "pretrained_cfg.")
    refuse_unknown(arguments, ARGUMENTS | TOLD_BY_ARRAYS, path, "model_args.")
    name = str(tree.get("architecture") or cfg.get("architecture") or "")
    numerics = _numerics(name, path)
    if activation := arguments.get("act_layer"):
        numerics["gelu"] = _one_of(GELUS, activation, f"{path}: model_args.act_layer")
    if pool := tree.get("global_pool") or arguments.get("global_pool"):
        numerics["pooling"] = _one_of(POOLING, pool, f"{path}: global_pool")
    size, classes = cfg.get("input_size"), tree.get("num_classes", cfg.get("num_classes"))
    seen_hw = hw_of(size[1:]) if size else None
    preprocess, image_hw = _preprocess(cfg, path), hw_of(arguments.get("img_size")) or seen_hw
    if patch := re.match(r"naflexvit_.*_patch(\d+)", name):
        tokens = math.prod(side // int(patch[1]) for side in seen_hw or (384, 384))
        preprocess = dataclasses.replace(preprocess, resize="native", max_tokens=tokens)
        image_hw = seen_hw = None  # of what is seen; positions are of a grid of their own
    stated = {"classes": classes, "width": tree.get("num_features")}
    return FolderFacts(
        numerics,
        heads=arguments.get("num_heads") or TIMM_HEADS.get(name),
        image_hw=image_hw,
        class_names=class_names(tree.get("label_names") or cfg.get("label_names"), path),
        preprocess=preprocess,
        seen_hw=seen_hw,
        stated={field: number for field, number in stated.items() if number is not None},
        imagenet=classes == 1000 and bool(re.search(r"in1k(_\d+)?$", str(cfg.get("tag")))),
    )


def _preprocess(cfg: Tree, path: Path) -> Preprocess:
    fraction, mode = float(cfg.get("crop_pct", 0.875)), cfg.get("crop_mode", "center")
    resizes = {"center": "crop", "squash": "squash" if fraction == 1 else "squash_crop"}
    return Preprocess(
        resize=_one_of(resizes, mode, f"{path}: crop_mode"),
        crop_fraction=fraction,
        filter=_filter(cfg, path),
        mean=few(cfg.get("mean", pixels.IMAGENET["mean"])),
        std=few(cfg.get("std", pixels.IMAGENET["std"])),
    )


def _filter(cfg: Tree, path: Path) -> Any:
    return _one_of(FILTERS, cfg.get("interpolation") or "bicubic", f"{path}: interpolation")


def _numerics(name: str, path: Path) -> Tree:
    """What the name of a model of timm tells. Raises UserError for one that is not built here."""
    if "_rope_ape" in name or "_rope_mixed" in name:
        fail(f"{path}: {name} is not built here, as it adds positions and turns them, or learns frequencies")
    if re.match(r"naflexvit_.*(_par|_radio)", name):
        fail(f"{path}: {name} is not built here, as it keeps the aspect of positions: use one without _par")
    numerics: Tree = {}
    for known, values in ARCHITECTURES.items() if name else ():
        numerics |= values if re.fullmatch(known, name) else {}
    return numerics


def _one_of(known: dict[str, str], value: Any, what: str) -> Any:
    if value not in known:
        fail(f"{what}={value} is not done here: use {', '.join(known)}")
    return known[value]


# open_clip's keys: of its towers, and of the image tower, as they stand in configs of published models. Keys
# about texts, training and shapes are accepted and ignored: the arrays give the shapes.
MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_bias"}
MODEL |= {"init_logit_scale", "nonscalar_logit_scale", "multimodal_cfg"}
VISION = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio", "patch_dropout"}
VISION |= {"ls_init_value", "output_tokens", "norm_kwargs", "timm_model_name", "timm_pool", "timm_proj"}
VISION |= {"timm_proj_bias", "timm_drop", "timm_drop_path", "timm_model_pretrained", "drop_path"}
SEEN = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}


def read_open_clip(tree: Tree, path: Path) -> FolderFacts:
    """What open_clip_config.json tells, all of it. Raises UserError for what is not done here."""
    model, seen = tree.get("model_cfg") or {}, tree.get("preprocess_cfg") or {}
    vision = model.get("vision_cfg") or {}
    for part, known, where in ((tree, {"model_cfg", "preprocess_cfg"}, ""), (model, MODEL, "model_cfg.")):
        refuse_unknown(part, known, path, where)
    refuse_unknown(vision, VISION | {"pool_type", "pos_embed_type"}, path, "vision_cfg.")
    refuse_unknown(seen, SEEN, path, "preprocess_cfg.")
    _one_of({"tok": ""}, vision.get("pool_type", "tok"), f"{path}: pool_type")
    _one_of({"learnable": ""}, vision.get("pos_embed_type", "learnable"), f"{path}: pos_embed_type")
    _one_of({"RGB": ""}, seen.get("mode", "RGB"), f"{path}: preprocess_cfg.mode")
    numerics: Tree = {"gelu": "quick" if model.get("quick_gelu") else "exact"}
    if epsilon := (vision.get("norm_kwargs") or {}).get("eps"):
        numerics["norm_eps"] = float(epsilon)
    if name := vision.get("timm_model_name"):  # a tower of timm's, whose name tells
        numerics |= _numerics(name, path)
    if pool := vision.get("timm_pool"):
        numerics["pooling"] = _one_of(POOLING, pool, f"{path}: timm_pool")
    hw = hw_of(vision.get("image_size", 224))
    resizes = {"shortest": "crop", "squash": "squash"}
    preprocess = Preprocess(
        resize=_one_of(resizes, seen.get("resize_mode", "shortest"), f"{path}: resize_mode"),
        crop_fraction=1.0,
        filter=_filter(seen, path),
        mean=few(seen.get("mean", pixels.CLIP["mean"])),
        std=few(seen.get("std", pixels.CLIP["std"])),
    )
    heads = (
        vision["width"] // vision.get("head_width", 64) if "width" in vision else TIMM_HEADS.get(name or "")
    )
    return FolderFacts(numerics, heads, hw, preprocess=preprocess, seen_hw=hw_of(seen.get("size")) or hw)
