"""Host transforms: an image to uint8 [h, w, c], a pure function of the image and a generator.

Evaluation is `resize` and centre crop as a checkpoint's Preprocess says. Training is a crop, then the
operations of `operations(cfg)` in their order, each of them `(image_hwc, rng) -> image_hwc`.
"""

import functools
import math

import numpy as np
from PIL import Image

from vit_jax.data import augment
from vit_jax.data.decode import Encoded, convert, from_pillow
from vit_jax.data.resize import FILTER_REACH, SIMD_FILTERS, Box, resize, resize_box
from vit_jax.patches import Size, fitted
from vit_jax.sections import Data, Preprocess

Picture = Encoded | Image.Image | np.ndarray

ASPECT_RANGE = (3 / 4, 4 / 3)  # of the inception crop, arXiv:1409.4842
CROP_TRIES = 10
# A JPEG is decoded at half, a quarter or an eighth of its size if it leaves so many pixels per target pixel.
OVERSAMPLING = {"exact": math.inf, "close": 3.0, "fast": 1.0}


class Cropped(np.ndarray):
    """uint8 [h, w, c] that `for_evaluation` made, and gives back as it is."""


def for_evaluation(picture: Picture, cfg: Preprocess, size: Size) -> np.ndarray:
    """Squash to `size`, or resize to cover it by 1/crop_fraction and take the centre.

    With resize=squash_crop, squash to `size` over crop_fraction, and take the centre. What Native fits is
    what an image is squashed to where it keeps its aspect.
    """
    if isinstance(picture, Cropped):
        return picture.view(np.ndarray)
    return _window(picture, cfg, fitted(size, *size_hw(picture)))


def _window(
    picture: Picture, cfg: Preprocess, image_hw: tuple[int, int], rng: np.random.Generator | None = None
) -> np.ndarray:
    """The centre of the resized picture, or with `rng` a window drawn evenly."""
    h, w = image_hw
    height, width = size_hw(picture)
    scale = max(h / height, w / width) / cfg.crop_fraction
    big_h, big_w = max(h, round(height * scale)), max(w, round(width * scale))
    if cfg.resize != "crop":
        share = cfg.crop_fraction if cfg.resize == "squash_crop" else 1.0
        big_h, big_w = round(h / share), round(w / share)
    top, left = (big_h - h) // 2, (big_w - w) // 2
    if rng is not None:
        top, left = int(rng.integers(big_h - h + 1)), int(rng.integers(big_w - w + 1))
    if cfg.resizer == "exact" or cfg.filter not in SIMD_FILTERS:
        image_hwc, _ = read(picture, cfg.channels)
        image_hwc = resize(image_hwc, (big_h, big_w), filter=cfg.filter, exact=True)
        return image_hwc[top : top + h, left : left + w]
    y, x = height / big_h, width / big_w  # source pixels per pixel
    return _resize_part(picture, cfg, (left * x, top * y, (left + w) * x, (top + h) * y), image_hw)


def for_training(picture: Picture, cfg: Data, size: Size, rng: np.random.Generator) -> np.ndarray:
    """Crop as `cfg.augment` says, then all of `operations(cfg)`."""
    if cfg.augment == "inception":
        image_hwc = inception_crop(picture, cfg, size, rng)
    elif cfg.augment == "window":
        image_hwc = _window(picture, cfg, fitted(size, *size_hw(picture)), rng)
    else:
        image_hwc = for_evaluation(picture, cfg, size)
    for operation in operations(cfg):
        image_hwc = operation(image_hwc, rng)
    return image_hwc


@functools.cache
def operations(cfg: Data) -> tuple[augment.Operation, ...]:
    """What training does to a crop, in order: shift, flip, colours and shapes, erasing."""
    partial = functools.partial
    found: list[augment.Operation] = []
    if cfg.augment == "pad" and cfg.pad_px:
        found.append(partial(augment.shift, pad_px=cfg.pad_px))
    if cfg.flip:
        found.append(augment.flip)
    if cfg.policy == "randaug":
        found.append(partial(augment.randaug, layers=cfg.randaug_layers, magnitude=cfg.randaug_magnitude))
    if cfg.policy == "three":
        found.append(augment.three_augment)
    if cfg.jitter:
        found.append(partial(augment.jitter, strength=cfg.jitter))
    if cfg.erase:
        found.append(partial(augment.erase, rate=cfg.erase, mean=cfg.mean, std=cfg.std))
    return tuple(found)


def inception_crop(picture: Picture, cfg: Data, size: Size, rng: np.random.Generator) -> np.ndarray:
    """A random box of the image, cut out and then resized, to its own aspect if so. arXiv:1409.4842."""
    height, width = size_hw(picture)
    box = inception_box((width, height), cfg.min_area, rng)
    left, top, right, bottom = box
    image_hw = fitted(size, bottom - top, right - left)
    quick = cfg.resizer == "fast"
    if _shrink(cfg, box, image_hw) > 1:
        return _resize_part(picture, cfg, box, image_hw, quick=quick)
    image_hwc, _ = read(picture, cfg.channels, bottom=bottom, quick=quick)
    part_hwc = image_hwc[top:bottom, left:right]
    filter = "pil_bilinear" if quick else cfg.filter
    return resize(part_hwc, image_hw, filter=filter, exact=cfg.resizer == "exact")


def inception_box(
    size_wh: tuple[int, int], min_area: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random area and aspect, or the whole if none fits. arXiv:1409.4842."""
    width, height = size_wh
    for _ in range(CROP_TRIES):
        # Not `rng.uniform`: the same numbers, but for rounding, in a fifth of the time.
        area = (min_area + (1.0 - min_area) * rng.random()) * width * height
        aspect = ASPECT_RANGE[0] * (ASPECT_RANGE[1] / ASPECT_RANGE[0]) ** rng.random()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def size_hw(picture: Picture) -> tuple[int, int]:
    """(height, width) of the picture in pixels, without decoding it where that is possible."""
    if isinstance(picture, Encoded):
        return picture.size_hw
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    return picture.shape[0], picture.shape[1]


def read(
    picture: Picture, channels: int, *, bottom: int | None = None, shrink: int = 1, quick: bool = False
) -> tuple[np.ndarray, int]:
    """(uint8 [h, w, c], the division of its sides that was possible); options as in `Encoded.pixels`."""
    if isinstance(picture, Image.Image):
        return from_pillow(picture, channels), 1
    if isinstance(picture, np.ndarray):
        return convert(picture, channels), 1
    image_hwc = picture.pixels(channels, bottom=bottom, shrink=shrink, quick=quick)
    return image_hwc, shrink if image_hwc.shape[1] < picture.size_hw[1] else 1


def _resize_part(
    picture: Picture, cfg: Preprocess, box: Box, image_hw: tuple[int, int], *, quick: bool = False
) -> np.ndarray:
    """`box` of the picture to `image_hw`, as if the whole had been resized; decodes no more than it must."""
    shrink = _shrink(cfg, box, image_hw)
    scale = max((box[3] - box[1]) / image_hw[0], 1.0)
    bottom = math.ceil(box[3] + FILTER_REACH[cfg.filter] * scale + shrink)
    image_hwc, divided = read(picture, cfg.channels, bottom=bottom, shrink=shrink, quick=quick)
    left, top, right, bottom = (side / divided for side in box)
    h, w = image_hwc.shape[:2]
    return resize_box(image_hwc, (left, top, min(right, w), min(bottom, h)), image_hw, filter=cfg.filter)


def _shrink(cfg: Preprocess, box: Box, image_hw: tuple[int, int]) -> int:
    left, top, right, bottom = box
    spare = min((bottom - top) / image_hw[0], (right - left) / image_hw[1]) / OVERSAMPLING[cfg.resizer]
    return max((s for s in (1, 2, 4, 8) if s <= spare), default=1)
