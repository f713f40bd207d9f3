"""The JSON files beside the weights in folders of transformers and timm: read, and written again.

A folder tells what arrays cannot: GELU, epsilon, heads, image size, class names and preprocessing.
"""

import json
from collections.abc import Callable

from vit_jax import paths
from vit_jax.fields import fail
from vit_jax.paths import Path
from vit_jax.sections import Model
from vit_jax.weights.formats import processors, timm_folder
from vit_jax.weights.formats.facts import FolderFacts, Tree, class_names, hw_of, read_json

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
OPEN_CLIP, OPEN_CLIP_WEIGHTS = (
    "open_clip_config.json",
    ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
)
ALL_WEIGHTS = (WEIGHTS, INDEX, *OPEN_CLIP_WEIGHTS)  # the first that a folder has is taken
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
PICKLED = (
    "a torch pickle, which can run code when it is read: convert it once where torch is, with "
    "`safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'model.safetensors')`"
)
GELU = {
    "gelu": "exact",
    "quick_gelu": "quick",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "silu": "exact",
}
ACTIVATIONS = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
MULTI_LABEL = "multi_label_classification"  # transformers' name of a sigmoid per class


def read(folder: Path, weights: str = WEIGHTS) -> FolderFacts:
    """What the JSON files beside the file `weights` of `folder` tell. Raises UserError for a broken one."""
    if weights in OPEN_CLIP_WEIGHTS or not (folder / CONFIG).exists():
        return timm_folder.read_open_clip(read_json(folder / OPEN_CLIP), folder / OPEN_CLIP)
    tree = read_json(folder / CONFIG)
    if _is_timms(tree):
        return timm_folder.read_timm(tree, folder / CONFIG)
    names = class_names(tree.get("id2label"), folder / CONFIG)
    vision = tree.get("vision_config", tree)
    act = vision.get("hidden_act")
    if act is not None and act not in GELU:
        fail(f"{folder / CONFIG}: hidden_act={act} is no activation of the models here: {', '.join(GELU)}")
    numerics: Tree = {"gelu": GELU[act]} if act is not None and act != "silu" else {}
    if "layer_norm_eps" in vision:
        numerics["norm_eps"] = float(vision["layer_norm_eps"])
    hw = hw_of(vision.get("image_size"))
    path = folder / PREPROCESSOR
    seen = read_json(path) if path.exists() else None
    preprocess, seen_hw = processors.read(seen, path) if seen is not None else (None, None)
    loss = "sigmoid" if tree.get("problem_type") == MULTI_LABEL else "softmax"
    # of images of their own aspect; other processors refuse the key
    stated = {"patch_size": seen["patch_size"]} if seen and seen.get("patch_size") else {}
    heads = vision.get("num_attention_heads")
    return FolderFacts(numerics, heads, hw, names, preprocess, seen_hw, loss, stated)


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


def is_timms(folder: Path) -> bool:
    """Whether config.json is in the form of timm, which has the preprocessing in it. Raises UserError."""
    return _is_timms(read_json(folder / CONFIG))


def _is_timms(tree: Tree) -> bool:
    return "pretrained_cfg" in tree or "architecture" in tree


def _dump(path: Path, tree: Tree) -> None:
    paths.write(path, json.dumps(tree, indent=2) + "\n")
