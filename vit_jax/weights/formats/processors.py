"""transformers' image processors: preprocessor_config.json read, every key of it, and written."""

import re
from typing import Any

from vit_jax import pixels
from vit_jax.errors import UserError
from vit_jax.fields import fail
from vit_jax.paths import Path
from vit_jax.sections import Preprocess
from vit_jax.weights.formats.facts import Tree, few

FILTERS = {2: "pil_bilinear", 3: "pil_bicubic"}  # Pillow's numbers
# By the image processor of transformers, what it does where the file does not say.
HALF, IMAGENET, CLIP = (
    {f"image_{name}": list(values) for name, values in statistics.items()}
    for statistics in (pixels.HALF, pixels.IMAGENET, pixels.CLIP)
)
SQUARE: Any = {
    "size": 224,
    "default_to_square": True,
    "do_center_crop": False,
    **HALF,
}
CROPPED: Any = {
    "size": 224,
    "default_to_square": False,
    "do_center_crop": True,
    "crop_size": 224,
    "resample": 3,
}
PROCESSORS: dict[str, Tree] = {
    "ViT": SQUARE | {"resample": 2},
    "Siglip": SQUARE | {"resample": 3},
    "Beit": SQUARE | {"resample": 3, "crop_size": 224},
    "DeiT": SQUARE | {"size": 256, "do_center_crop": True, "crop_size": 224, "resample": 3},
    "Bit": CROPPED | CLIP,
    "CLIP": CROPPED | CLIP,
    "Siglip2": HALF | {"resample": 2, "patch_size": 16, "max_num_patches": 256},
    "DINOv3ViT": SQUARE | IMAGENET | {"resample": 2},
}
COMMON: Any = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
# Keys that say nothing of pixels, and `do_convert_rgb`, which for other images than RGB is always done here.
NO_PIXELS = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "_valid_processor_keys",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "do_convert_rgb",
}
RESAMPLE = {"pil_bilinear": 2, "tf_bilinear": 2, "pil_bicubic": 3}


def read(config: Tree, path: Path) -> tuple[Preprocess, tuple[int, int] | None]:
    """What the file says, all of it, and the size of the images that come out. Raises UserError."""
    kind = str(
        config.get("image_processor_type") or config.get("feature_extractor_type") or "ViTImageProcessor"
    )
    family = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", kind)
    if family not in PROCESSORS:
        fail(
            f"{path}: {kind} is no image processor here: use ViT, DeiT, Beit, Bit, CLIP or "
            "SiglipImageProcessor"
        )
    tree = COMMON | PROCESSORS[family] | {name: value for name, value in config.items() if value is not None}
    known = {*COMMON, *PROCESSORS[family], *NO_PIXELS, "crop_size"}
    unknown = [f"{name}={value}" for name, value in tree.items() if name not in known and value is not False]
    if unknown:  # 0 is one, too: it may be a number of pixels
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
    if not isinstance(size, dict | list | tuple):
        size = [size, size] if tree["default_to_square"] else {"shortest_edge": size}
    size = _named(size)
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
    crop = tree.get("crop_size") or fail("do_center_crop without crop_size is not done here: say the size")
    height_width = _named([crop, crop] if isinstance(crop, int) else crop)
    seen_hw = height_width["height"], height_width["width"]
    h, w = seen_hw[0] / before_hw[0], seen_hw[1] / before_hw[1]
    if h != w or h > 1:
        fail(f"crop_size={crop} of size={size} is not done here: use a smaller crop of the same shape")
    if h == 1 and "height" in size:
        return {"resize": "squash"}, seen_hw
    return {"resize": "squash_crop" if "height" in size else "crop", "crop_fraction": h}, seen_hw


def _named(size: Any) -> dict[str, int]:
    """A size whose numbers have names. Raises ValueError for a list that is no height and width."""
    return size if isinstance(size, dict) else dict(zip(("height", "width"), size, strict=True))


def _statistics(tree: Tree) -> Tree:
    """Mean and deviation of pixels from 0 to 1."""
    # (rescale_factor * x - mean) / std = (x / 255 - mean / k) / (std / k)
    k = 255 * tree["rescale_factor"] if tree["do_rescale"] else 255.0
    normal = tree["do_normalize"]
    values = {"mean": tree["image_mean"] if normal else [0.0], "std": tree["image_std"] if normal else [1.0]}
    listed = lambda v: v if isinstance(v, list) else [v]
    return {name: few([float(x) / k for x in listed(value)]) for name, value in values.items()}


def written(cfg: Preprocess, image_hw: tuple[int, int]) -> Tree:
    """transformers' image processor: squash to size, or to a larger one or shortest edge, and centre crop.

    Raises UserError for images of their own aspect.
    """
    if cfg.resize == "native":
        fail(
            "a folder of transformers cannot state images of their own aspect: write a .npz or .safetensors "
            "file"
        )
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
