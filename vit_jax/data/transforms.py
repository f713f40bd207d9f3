"""Host transforms: Pillow image to uint8 array [h, w, c], a pure function of the image and a generator."""

import math

import numpy as np
from PIL import Image

from vit_jax.config import Data, Preprocess

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
ASPECT_RANGE = (3 / 4, 4 / 3)  # of the inception crop, arXiv:1409.4842
CROP_TRIES = 10


def for_evaluation(image: Image.Image, cfg: Preprocess, image_hw: tuple[int, int]) -> np.ndarray:
    """Squash to `image_hw`, or resize to cover it by 1/crop_fraction and take the centre."""
    image = _convert(image, cfg.channels)
    h, w = image_hw
    if cfg.resize == "squash":
        return _array(_resize(image, cfg, (w, h)))
    scale = max(h / image.height, w / image.width) / cfg.crop_fraction
    size = max(w, round(image.width * scale)), max(h, round(image.height * scale))
    left, top = (size[0] - w) // 2, (size[1] - h) // 2
    return _array(_resize(image, cfg, size).crop((left, top, left + w, top + h)))


def for_training(
    image: Image.Image, cfg: Data, image_hw: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Crop as `cfg.augment` says, then flip left-right half of the time if `cfg.flip`."""
    if cfg.augment == "inception":
        image = _convert(image, cfg.channels)
        out = _array(
            _resize(image, cfg, (image_hw[1], image_hw[0]), box=inception_box(image.size, cfg.min_area, rng))
        )
    else:
        out = for_evaluation(image, cfg, image_hw)
        if cfg.augment == "pad":
            out = _shift(out, cfg.pad_px, rng)
    return out[:, ::-1] if cfg.flip and rng.random() < 0.5 else out


def inception_box(
    size_wh: tuple[int, int], min_area: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random area and aspect, or the whole if none fits. arXiv:1409.4842."""
    width, height = size_wh
    for _ in range(CROP_TRIES):
        area = rng.uniform(min_area, 1.0) * width * height
        aspect = math.exp(rng.uniform(math.log(ASPECT_RANGE[0]), math.log(ASPECT_RANGE[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def _shift(image_hwc: np.ndarray, pad_px: int, rng: np.random.Generator) -> np.ndarray:
    """Move by up to `pad_px` each way, zeros behind: pad and random crop, as is usual for CIFAR."""
    h, w, _ = image_hwc.shape
    padded = np.pad(image_hwc, ((pad_px, pad_px), (pad_px, pad_px), (0, 0)))
    top, left = rng.integers(2 * pad_px + 1, size=2)
    return padded[top : top + h, left : left + w]


def _convert(image: Image.Image, channels: int) -> Image.Image:
    return image.convert("L" if channels == 1 else "RGB")


def _resize(
    image: Image.Image,
    cfg: Preprocess,
    size_wh: tuple[int, int],
    box: tuple[int, int, int, int] | None = None,
) -> Image.Image:
    return image.resize(size_wh, FILTERS[cfg.filter], box=box)


def _array(image: Image.Image) -> np.ndarray:
    out = np.asarray(image)
    return out[..., None] if out.ndim == 2 else out
