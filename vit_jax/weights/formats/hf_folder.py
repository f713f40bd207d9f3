"""The JSON files beside the weights in folders of transformers and timm: read, and written again.

A folder tells what arrays cannot: GELU, epsilon, heads, image size, class names and preprocessing.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from vit_jax import paths
from vit_jax.errors import UserError
from vit_jax.fields import fail
from vit_jax.paths import Path
from vit_jax.sections import LossName, Model, Preprocess

Tree = dict[str, Any]
WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
GELU = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "silu": "exact"}
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
    loss: LossName = "softmax"


def read(folder: Path) -> Told:
    """What config.json and preprocessor_config.json of `folder` tell. Raises UserError for a broken one."""
    tree = _json(folder / CONFIG)
    if "pretrained_cfg" in tree or "architecture" in tree:
        return _timm(tree)
    names = _class_names(tree)
    vision = tree.get("vision_config", tree)
    act = vision.get("hidden_act")
    if act is not None and act not in GELU:
        fail(f"{folder / CONFIG}: hidden_act={act} is no activation of the models here: {', '.join(GELU)}")
    numerics: Tree = {"gelu": GELU[act]} if act in ("gelu", "gelu_new", "gelu_pytorch_tanh") else {}
    if "layer_norm_eps" in vision:
        numerics["norm_eps"] = float(vision["layer_norm_eps"])
    size = vision.get("image_size")
    hw = (size, size) if isinstance(size, int) else tuple(size) if size else None
    path = folder / PREPROCESSOR
    preprocess = _preprocess(_json(path), path) if path.exists() else None
    loss = "sigmoid" if tree.get("problem_type") == MULTI_LABEL else "softmax"
    return Told(numerics, vision.get("num_attention_heads"), hw, names, preprocess, loss)


def write(folder: Path, config: Tree, preprocessor: Tree) -> None:
    """config.json and preprocessor_config.json of a transformers model. Raises UserError."""
    _dump(folder / CONFIG, config)
    _dump(folder / PREPROCESSOR, preprocessor)


def config(
    model: Model, names: tuple[str, ...], loss: str, family: Callable[[Model, Tree, Tree], Tree]
) -> Tree:
    """transformers' config of `model`, as its family arranges it. Raises UserError if it cannot tell all."""
    side = model.image_hw[0]
    if model.image_hw != (side, side):
        fail(f"transformers' config has square images only, not {model.image_hw}: write a file, not a folder")
    body: Tree = {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "hidden_act": "gelu" if model.gelu == "exact" else "gelu_pytorch_tanh",
        "layer_norm_eps": model.norm_eps,
        "image_size": side,
        "patch_size": model.patch_size,
        "num_channels": 3,
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
    """transformers' image processor: squash to size, or shortest edge and centre crop."""
    h, w = image_hw
    size = {"height": h, "width": w}
    cropped = cfg.resize == "crop"
    channels = lambda values: list(values) * (3 if len(values) == 1 else 1)
    return {
        "image_processor_type": "BitImageProcessor" if cropped else "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(min(h, w) / cfg.crop_fraction)} if cropped else size,
        "do_center_crop": cropped,
        **({"crop_size": size} if cropped else {}),
        "resample": RESAMPLE[cfg.filter],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": channels(cfg.mean),
        "image_std": channels(cfg.std),
    }


def _preprocess(tree: Tree, path: Path) -> Preprocess:
    # What a file does not say is the default of transformers' ViTImageProcessor.
    size = tree.get("size", {"height": 224, "width": 224})
    resample = tree.get("resample", 2)
    if resample not in FILTERS:
        fail(f"{path}: resample={resample} is no filter here: use 2 (bilinear) or 3 (bicubic)")
    short = size if isinstance(size, int) else size.get("shortest_edge") or size.get("height")
    crop = tree.get("crop_size", short)
    crop_px = crop if isinstance(crop, int) else crop.get("height", short)
    cropped = bool(tree.get("do_center_crop")) or (isinstance(size, dict) and "shortest_edge" in size)
    try:
        return Preprocess(
            resize="crop" if cropped else "squash",
            crop_fraction=min(crop_px / short, 1.0) if cropped else 0.875,
            filter=FILTERS[resample],  # type: ignore[arg-type]
            mean=_few(tree.get("image_mean", [0.5])),
            std=_few(tree.get("image_std", [0.5])),
        )
    except (UserError, TypeError) as error:
        fail(f"{path}: {error}")


def _few(values: list[float]) -> tuple[float, ...]:
    return tuple(map(float, values[:1] if len(set(values)) == 1 else values))


def _timm(tree: Tree) -> Told:
    cfg, arguments = tree.get("pretrained_cfg", {}), tree.get("model_args") or {}
    numerics = {"gelu": "tanh"} if arguments.get("act_layer") == "gelu_tanh" else {}
    size = cfg.get("input_size")
    preprocess = Preprocess(
        resize="squash" if cfg.get("crop_mode") == "squash" else "crop",
        crop_fraction=float(cfg.get("crop_pct", 0.9)),
        filter="pil_bilinear" if cfg.get("interpolation") == "bilinear" else "pil_bicubic",
        mean=_few(cfg.get("mean", [0.5])),
        std=_few(cfg.get("std", [0.5])),
    )
    names = tuple(tree.get("label_names") or ())
    return Told(numerics, arguments.get("num_heads"), tuple(size[1:]) if size else None, names, preprocess)


def _class_names(tree: Tree) -> tuple[str, ...]:
    labels = tree.get("id2label") or {}
    names = tuple(str(labels.get(str(i), "")) for i in range(len(labels)))
    known = all(names) and not all(n == f"LABEL_{i}" for i, n in enumerate(names))
    return names if known else ()


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
