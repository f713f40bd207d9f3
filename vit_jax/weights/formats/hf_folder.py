"""The JSON files beside the weights in folders of transformers and timm: read, and written again.

A folder tells what arrays cannot: GELU, epsilon, heads, image size, class names and preprocessing.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from vit_jax import paths
from vit_jax.errors import UserError
from vit_jax.fields import fail
from vit_jax.paths import Path
from vit_jax.sections import LossName, Model, Preprocess
from vit_jax.weights.formats.processors import CLIP_MEAN, CLIP_STD, COMMON, NO_PIXELS, PROCESSORS

Tree = dict[str, Any]
WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
OPEN_CLIP = "open_clip_config.json"
GELU = {
    "gelu": "exact",
    "quick_gelu": "quick",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "silu": "exact",
}
ACTIVATIONS = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
MULTI_LABEL = "multi_label_classification"  # transformers' name of a sigmoid a class
FILTERS = {2: "pil_bilinear", 3: "pil_bicubic"}  # Pillow's numbers
RESAMPLE = {"pil_bilinear": 2, "tf_bilinear": 2, "pil_bicubic": 3}


class Told(NamedTuple):
    """What a folder tells; None or empty where it does not."""

    numerics: Tree
    heads: int | None = None
    image_hw: tuple[int, int] | None = None
    class_names: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    seen_hw: tuple[int, int] | None = None  # the size of the images that preprocessing gives
    loss: LossName = "softmax"


def read(folder: Path) -> Told:
    """What config.json and preprocessor_config.json of `folder` tell. Raises UserError for a broken one."""
    if (folder / OPEN_CLIP).exists():
        return _open_clip(_json(folder / OPEN_CLIP))
    tree = _json(folder / CONFIG)
    if "pretrained_cfg" in tree or "architecture" in tree:
        return _timm(tree)
    names = _class_names(tree, folder / CONFIG)
    vision = tree.get("vision_config", tree)
    act = vision.get("hidden_act")
    if act is not None and act not in GELU:
        fail(f"{folder / CONFIG}: hidden_act={act} is no activation of the models here: {', '.join(GELU)}")
    numerics: Tree = {"gelu": GELU[act]} if act is not None and act != "silu" else {}
    if "layer_norm_eps" in vision:
        numerics["norm_eps"] = float(vision["layer_norm_eps"])
    size = vision.get("image_size")
    hw = (size, size) if isinstance(size, int) else tuple(size) if size else None
    path = folder / PREPROCESSOR
    preprocess, seen_hw = _preprocess(_json(path), path) if path.exists() else (None, None)
    loss = "sigmoid" if tree.get("problem_type") == MULTI_LABEL else "softmax"
    return Told(numerics, vision.get("num_attention_heads"), hw, names, preprocess, seen_hw, loss)


def write(folder: Path, config: Tree, preprocessor: Tree) -> None:
    """config.json and preprocessor_config.json of a transformers model. Raises UserError."""
    _dump(folder / CONFIG, config)
    _dump(folder / PREPROCESSOR, preprocessor)


def config(
    model: Model,
    names: tuple[str, ...],
    loss: str,
    family: Callable[[Model, Tree, Tree], Tree],
    *,
    channels: int,
) -> Tree:
    """transformers' config of `model`, as its family arranges it. Raises UserError if it cannot tell all."""
    side = model.image_hw[0]
    if model.image_hw != (side, side):
        fail(f"transformers' config has square images only, not {model.image_hw}: write a file, not a folder")
    body: Tree = {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "hidden_act": ACTIVATIONS[model.gelu],
        "layer_norm_eps": model.norm_eps,
        "image_size": side,
        "patch_size": model.patch_size,
        "num_channels": channels,
    }
    labels = names if len(names) == model.classes else [f"LABEL_{i}" for i in range(model.classes)]
    head: Tree = {"dtype": "float32"}
    if model.classes:
        head["id2label"] = {str(i): name for i, name in enumerate(labels)}
        head["label2id"] = {name: i for i, name in enumerate(labels)}
    if loss == "sigmoid":
        head["problem_type"] = MULTI_LABEL
    return family(model, body, head)


def preprocessor(cfg: Preprocess, image_hw: tuple[int, int]) -> Tree:
    """transformers' image processor: squash to size, or to a larger one or shortest edge, and centre crop."""
    h, w = image_hw
    larger_h, larger_w = round(h / cfg.crop_fraction), round(w / cfg.crop_fraction)
    kind, size = {
        "squash": ("ViT", {"height": h, "width": w}),
        "squash_crop": ("DeiT", {"height": larger_h, "width": larger_w}),
        "crop": ("Bit", {"shortest_edge": min(larger_h, larger_w)}),
    }[cfg.resize]
    values = lambda values: list(values) * (cfg.channels if len(values) == 1 else 1)
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": True,
        "size": size,
        "do_center_crop": cfg.resize != "squash",
        **({"crop_size": {"height": h, "width": w}} if cfg.resize != "squash" else {}),
        "resample": RESAMPLE[cfg.filter],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": values(cfg.mean),
        "image_std": values(cfg.std),
    }


def _preprocess(told: Tree, path: Path) -> tuple[Preprocess, tuple[int, int] | None]:
    """What the file says, all of it, and the size of the images that come out. Raises UserError."""
    kind = str(told.get("image_processor_type") or told.get("feature_extractor_type") or "ViTImageProcessor")
    family = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", kind)
    if family not in PROCESSORS:
        fail(f"{path}: {kind} is no image processor here: use ViT, DeiT, Bit, CLIP or SiglipImageProcessor")
    tree = COMMON | PROCESSORS[family] | {name: value for name, value in told.items() if value is not None}
    known = {*COMMON, *PROCESSORS[family], *NO_PIXELS, "crop_size"}
    unknown = [f"{name}={value}" for name, value in tree.items() if name not in known and value is not False]
    if unknown:
        fail(f"{path}: {', '.join(unknown)} is not done here: remove what the images do not need")
    if tree["resample"] not in FILTERS:
        fail(f"{path}: resample={tree['resample']} is no filter here: use 2 (bilinear) or 3 (bicubic)")
    try:
        sized, seen_hw = _sizes(tree)
        return Preprocess(filter=FILTERS[tree["resample"]], **sized, **_statistics(tree)), seen_hw  # type: ignore
    except (UserError, TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        fail(f"{path}: {error}")


def _sizes(tree: Tree) -> tuple[Tree, tuple[int, int] | None]:
    """`resize` and `crop_fraction`, and the size that comes out; None where images come as they are."""
    if "max_num_patches" in tree:
        if not tree["do_resize"]:
            fail("images of their own aspect without do_resize are not done here: set it")
        return {"resize": "native", "max_tokens": tree["max_num_patches"]}, None
    size, cropped = tree["size"], tree["do_center_crop"]
    if not isinstance(size, dict):
        size = {"height": size, "width": size} if tree["default_to_square"] else {"shortest_edge": size}
    if not tree["do_resize"]:
        if cropped:
            fail("do_center_crop without do_resize is not done here: say the size before the crop")
        return {"resize": "squash"}, None  # which leaves images of the right size as they are
    edge = size.get("shortest_edge", 0)
    before_hw = (size.get("height", edge), size.get("width", edge))
    if size.keys() not in ({"height", "width"}, {"shortest_edge"}):
        fail(f"size={size} is not done here: use height and width, or shortest_edge")
    if not cropped:
        if "height" not in size:
            fail(f"size={size} without do_center_crop gives images of many sizes: use height and width")
        return {"resize": "squash"}, before_hw
    crop = tree["crop_size"]
    seen_hw: tuple[int, int] = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
    h, w = seen_hw[0] / before_hw[0], seen_hw[1] / before_hw[1]
    if h != w or h > 1:
        fail(f"crop_size={crop} of size={size} is not done here: use a smaller crop of the same shape")
    if h == 1 and "height" in size:
        return {"resize": "squash"}, seen_hw
    return {"resize": "squash_crop" if "height" in size else "crop", "crop_fraction": h}, seen_hw


def _statistics(tree: Tree) -> Tree:
    """Mean and deviation of pixels from 0 to 1."""
    # (rescale_factor * x - mean) / std = (x / 255 - mean / k) / (std / k)
    k = 255 * tree["rescale_factor"] if tree["do_rescale"] else 255.0
    normal = tree["do_normalize"]
    values = {"mean": tree["image_mean"] if normal else [0.0], "std": tree["image_std"] if normal else [1.0]}
    listed = lambda v: v if isinstance(v, list) else [v]
    return {name: _few([float(x) / k for x in listed(value)]) for name, value in values.items()}


def _few(values: list[float]) -> tuple[float, ...]:
    return tuple(map(float, values[:1] if len(set(values)) == 1 else values))


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


def _timm(tree: Tree) -> Told:
    cfg, arguments = tree.get("pretrained_cfg", {}), tree.get("model_args") or {}
    name = str(tree.get("architecture", ""))
    if "_rope_ape" in name or "_rope_mixed" in name:
        fail(f"{name} is not built here, as it adds positions and turns them, or learns frequencies")
    if re.match(r"naflexvit_.*(_par|_radio)", name):
        fail(f"{name} is not built here, as it keeps the aspect of positions: give a naflexvit without _par")
    numerics: Tree = {}
    for known, told in ARCHITECTURES.items() if name else ():
        numerics |= told if re.fullmatch(known, name) else {}
    activation = {"gelu_tanh": "tanh", "quick_gelu": "quick"}.get(str(arguments.get("act_layer")))
    numerics |= {"gelu": activation} if activation else {}
    pool = {"avg": "gap", "token": "token", "map": "map"}.get(str(tree.get("global_pool")))
    numerics |= {"pooling": pool} if pool else {}
    size = cfg.get("input_size")
    fraction, mode = float(cfg.get("crop_pct", 0.9)), cfg.get("crop_mode", "center")
    resize = {"center": "crop", "squash": "squash" if fraction == 1 else "squash_crop"}.get(mode)
    filter = f"pil_{cfg.get('interpolation', 'bicubic')}"
    if resize is None or filter not in RESAMPLE:
        fail(
            f"pretrained_cfg: crop_mode={mode} with interpolation={cfg.get('interpolation')} is not done "
            "here: use center or squash, and bilinear or bicubic"
        )
    preprocess = Preprocess(
        resize=resize,  # type: ignore[arg-type]
        crop_fraction=fraction,
        filter=filter,  # type: ignore[arg-type]
        mean=_few(cfg.get("mean", [0.5])),
        std=_few(cfg.get("std", [0.5])),
    )
    names, hw = tuple(tree.get("label_names") or ()), tuple(size[1:]) if size else None
    if patch := re.match(r"naflexvit_.*_patch(\d+)", name):
        tokens = math.prod(side // int(patch[1]) for side in hw or (384, 384))
        preprocess = dataclasses.replace(preprocess, resize="native", max_tokens=tokens)
        hw = None  # of what is seen; positions are of a grid of their own
    return Told(numerics, arguments.get("num_heads") or TIMM_HEADS.get(name), hw, names, preprocess, hw)


def _open_clip(tree: Tree) -> Told:
    model, seen = tree.get("model_cfg", {}), tree.get("preprocess_cfg", {})
    vision = model.get("vision_cfg", {})
    side = vision.get("image_size", 224)
    heads = vision["width"] // vision.get("head_width", 64) if "width" in vision else None
    preprocess = Preprocess(
        resize="crop",
        crop_fraction=1.0,
        filter="pil_bicubic",
        mean=_few(seen.get("mean", CLIP_MEAN)),
        std=_few(seen.get("std", CLIP_STD)),
    )
    hw = (side, side) if isinstance(side, int) else tuple(side)
    return Told({"gelu": "quick" if model.get("quick_gelu") else "exact"}, heads, hw, (), preprocess, hw)


def _class_names(tree: Tree, path: Path) -> tuple[str, ...]:
    """The name of each class; of a class without one, the name that transformers gives it."""
    try:
        labels = {int(i): str(name) for i, name in (tree.get("id2label") or {}).items()}
    except ValueError as error:
        fail(f"{path}: id2label has a key that is no number ({error}): give each class its number")
    if all(name == f"LABEL_{i}" for i, name in labels.items()):
        return ()
    return tuple(labels.get(i, f"LABEL_{i}") for i in range(max(labels) + 1))


def _json(path: Path) -> Tree:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}: give a folder of config.json and {WEIGHTS}")
    except ValueError as error:
        fail(f"{path} is not JSON ({error}): get the file again")
    if not isinstance(tree, dict):
        fail(f"{path} is not a JSON object: get the file again")
    return tree


def _dump(path: Path, tree: Tree) -> None:
    paths.write(path, json.dumps(tree, indent=2) + "\n")
