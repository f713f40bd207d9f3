"""Training augmentation on the host: pure functions of `(image_hwc, rng)`, uint8 [h, w, c] in and out.

RandAugment follows big_vision's `randaug(layers, magnitude)`: one of 16 operations per layer, drawn evenly,
at a fixed magnitude; at magnitude 10 each is at the top of its original scale. 3-Augment follows DeiT III.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.data.decode import pixels_of

Operation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
PillowOperation = Callable[[Image.Image], Image.Image]

MAX_MAGNITUDE = 10  # of the original search, arXiv:1805.09501
TRANSLATE_PX, CUTOUT_PX = 100, 40  # at MAX_MAGNITUDE, whatever the image size, as in big_vision
GREY = 128  # what shows where an operation moved the image away
SOLARIZE_THRESHOLD = 128
BLUR_RADIUS_RANGE = (0.1, 2.0)  # DeiT III, arXiv:2204.07118
ERASE_AREA_RANGE, ERASE_ASPECT_RANGE, ERASE_TRIES = (0.02, 1 / 3), (0.3, 1 / 0.3), 10  # arXiv:1708.04896


def flip(image_hwc: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Left-right, half of the time."""
    return image_hwc[:, ::-1] if rng.random() < 0.5 else image_hwc


def shift(image_hwc: np.ndarray, rng: np.random.Generator, *, pad_px: int) -> np.ndarray:
    """Move by up to `pad_px` each way, zeros behind: pad and random crop, as is usual for CIFAR."""
    h, w, _ = image_hwc.shape
    top, left = map(int, rng.integers(2 * pad_px + 1, size=2))
    down, right = max(-h, min(pad_px - top, h)), max(-w, min(pad_px - left, w))
    out = np.zeros(image_hwc.shape, np.uint8)
    seen = image_hwc[max(-down, 0) : h - down, max(-right, 0) : w - right]
    out[max(down, 0) :, max(right, 0) :][: seen.shape[0], : seen.shape[1]] = seen
    return out


def randaug(image_hwc: np.ndarray, rng: np.random.Generator, *, layers: int, magnitude: float) -> np.ndarray:
    """`layers` operations of RANDAUG_OPERATIONS. arXiv:1909.13719."""
    image = _to_pillow(image_hwc)
    for _ in range(layers):
        operation = RANDAUG_OPERATIONS[int(rng.integers(len(RANDAUG_OPERATIONS)))]
        image = operation(image, magnitude / MAX_MAGNITUDE, rng)
    return pixels_of(image)


def three_augment(image_hwc: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of grey, solarize and Gaussian blur. arXiv:2204.07118 section 3."""
    image, choice = _to_pillow(image_hwc), int(rng.integers(3))
    if choice == 0:
        return pixels_of(image.convert("L").convert(image.mode))
    if choice == 1:
        return pixels_of(ImageOps.solarize(image, SOLARIZE_THRESHOLD))
    return pixels_of(image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_RADIUS_RANGE))))


def jitter(image_hwc: np.ndarray, rng: np.random.Generator, *, strength: float) -> np.ndarray:
    """Brightness, contrast and saturation by factors of 1 +- `strength`, in random order."""
    image = _to_pillow(image_hwc)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i in rng.permutation(len(enhancers)):
        image = enhancers[i](image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return pixels_of(image)


def erase(
    image_hwc: np.ndarray,
    rng: np.random.Generator,
    *,
    rate: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> np.ndarray:
    """Noise that is standard normal after normalisation, in a random rectangle, `rate` of the time."""
    if rng.random() >= rate:
        return image_hwc
    height, width, channels = image_hwc.shape
    for _ in range(ERASE_TRIES):
        area = rng.uniform(*ERASE_AREA_RANGE) * height * width
        low, high = map(math.log, ERASE_ASPECT_RANGE)
        aspect = math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            noise = np.asarray(mean) + np.asarray(std) * rng.standard_normal((h, w, channels))
            out = image_hwc.copy()
            out[top : top + h, left : left + w] = np.clip(np.rint(noise * 255), 0, 255)
            return out
    return image_hwc


RandaugOperation = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _plain(operation: PillowOperation) -> RandaugOperation:
    return lambda image, level, rng: operation(image)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> RandaugOperation:
    return lambda image, level, rng: kind(image).enhance(level * 1.8 + 0.1)


def _affine(matrix: Callable[[float], tuple[float, ...]], top: float) -> RandaugOperation:
    def operation(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
        amount = level * top * (1 if rng.random() < 0.5 else -1)
        return image.transform(image.size, Image.Transform.AFFINE, matrix(amount), fillcolor=_grey(image))

    return operation


def _rotate(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return image.rotate(level * 30 * (1 if rng.random() < 0.5 else -1), fillcolor=_grey(image))


def _posterize(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    # More bits the stronger, as in big_vision; of 0 its shifts, which TensorFlow bounds, keep the highest.
    return ImageOps.posterize(image, min(max(int(level * 4), 1), 8))


def _solarize(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return ImageOps.solarize(image, int(level * 256))


def _solarize_add(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    added = int(level * 110)
    table = [min(i + added, 255) if i < SOLARIZE_THRESHOLD else i for i in range(256)]
    return image.point(table * len(image.getbands()))


def _cutout(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    half = int(level * CUTOUT_PX)
    y, x = int(rng.integers(image.height)), int(rng.integers(image.width))
    out = image.copy()
    out.paste(_grey(image), (max(0, x - half), max(0, y - half), x + half, y + half))
    return out


RANDAUG_OPERATIONS: tuple[RandaugOperation, ...] = (
    _plain(ImageOps.autocontrast),
    _plain(ImageOps.equalize),
    _plain(ImageOps.invert),
    _rotate,
    _posterize,
    _solarize,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _affine(lambda a: (1, a, 0, 0, 1, 0), 0.3),  # shear x
    _affine(lambda a: (1, 0, 0, a, 1, 0), 0.3),  # shear y
    _affine(lambda a: (1, 0, a, 0, 1, 0), TRANSLATE_PX),
    _affine(lambda a: (1, 0, 0, 0, 1, a), TRANSLATE_PX),
    _cutout,
    _solarize_add,
)


def _grey(image: Image.Image) -> int | tuple[int, ...]:
    bands = len(image.getbands())
    return GREY if bands == 1 else (GREY,) * bands


def _to_pillow(image_hwc: np.ndarray) -> Image.Image:
    return Image.fromarray(image_hwc[..., 0] if image_hwc.shape[-1] == 1 else image_hwc)
