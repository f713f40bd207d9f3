"""Resizing under exact names: whose pixels, and how closely. uint8 arrays [h, w, c] in and out.

`pil_bilinear` and `pil_bicubic` are Pillow's antialiased filters; `tf_bilinear` is `tf.image.resize` as the
official ViT code calls it: half-pixel centres, no antialiasing. `exact` gives their pixels bit for bit
(TensorFlow's floats rounded); SIMD code follows Pillow's within 0.2 grey levels on average.
"""

import math
from collections.abc import Callable

import cykooz_resizer as simd
import numpy as np
from PIL import Image

PILLOW_FILTERS = {"pil_bilinear": Image.Resampling.BILINEAR, "pil_bicubic": Image.Resampling.BICUBIC}
SIMD_FILTERS = {"pil_bilinear": simd.FilterType.bilinear, "pil_bicubic": simd.FilterType.catmull_rom}
FILTER_REACH = {"pil_bilinear": 1, "pil_bicubic": 2, "tf_bilinear": 1}  # in pixels of the coarser side
SIMD_PIXELS = {1: simd.PixelType.U8, 2: simd.PixelType.U8x2, 3: simd.PixelType.U8x3}
WHOLE = {  # to make options takes longer than to resize a small image by them
    name: simd.ResizeOptions(resize_alg=simd.ResizeAlg.convolution(kind), use_alpha=False)
    for name, kind in SIMD_FILTERS.items()
}

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def resize(image_hwc: np.ndarray, size_hw: tuple[int, int], *, filter: str, exact: bool) -> np.ndarray:
    """The whole image to `size_hw`."""
    if not exact and filter in SIMD_FILTERS:
        h, w = image_hwc.shape[:2]
        return resize_box(image_hwc, (0, 0, w, h), size_hw, filter=filter)
    if filter == "tf_bilinear":
        return _tf_bilinear(image_hwc, size_hw)
    return _pillow(image_hwc, size_hw, PILLOW_FILTERS[filter])


def resize_box(image_hwc: np.ndarray, box: Box, size_hw: tuple[int, int], *, filter: str) -> np.ndarray:
    """What lies in `box` to `size_hw` by SIMD; the filter looks beyond the box, not beyond the image."""
    (h, w), (left, top, right, bottom) = image_hwc.shape[:2], box
    if box == (0, 0, w, h):
        if (h, w) == size_hw:
            return image_hwc
        return _by_channels(image_hwc, lambda plane_hwc: _simd(plane_hwc, size_hw, WHOLE[filter]))
    # Only what the filter can see is copied.
    reach_y = FILTER_REACH[filter] * max((bottom - top) / size_hw[0], 1.0) + 1
    reach_x = FILTER_REACH[filter] * max((right - left) / size_hw[1], 1.0) + 1
    y, x = max(int(top - reach_y), 0), max(int(left - reach_x), 0)
    part_hwc = image_hwc[y : math.ceil(bottom + reach_y), x : math.ceil(right + reach_x)]
    options = WHOLE[filter].copy()
    options.crop_box = simd.CropBox(left - x, top - y, right - left, bottom - top)
    return _by_channels(part_hwc, lambda plane_hwc: _simd(plane_hwc, size_hw, options))


def _simd(image_hwc: np.ndarray, size_hw: tuple[int, int], options: simd.ResizeOptions) -> np.ndarray:
    (h, w, channels), (out_h, out_w) = image_hwc.shape, size_hw
    kind = SIMD_PIXELS[channels]
    out = simd.ImageData(out_w, out_h, kind)
    simd.Resizer().resize(simd.ImageData(w, h, kind, image_hwc.tobytes()), out, options)
    return np.frombuffer(out.get_buffer(), np.uint8).reshape(out_h, out_w, channels)


def _pillow(image_hwc: np.ndarray, size_hw: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    size_wh = size_hw[1], size_hw[0]

    def part(part_hwc: np.ndarray) -> np.ndarray:
        plane = part_hwc[..., 0] if part_hwc.shape[-1] == 1 else part_hwc
        return np.asarray(Image.fromarray(plane).resize(size_wh, resample)).reshape(*size_hw, -1)

    # Pillow has images of one and three plain channels; it would multiply a fourth into the others.
    if image_hwc.shape[-1] in (1, 3):
        return part(image_hwc)
    return np.concatenate([part(image_hwc[..., i : i + 1]) for i in range(image_hwc.shape[-1])], axis=-1)


def _tf_bilinear(image_hwc: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """float32 in the order of TensorFlow's resize_bilinear with half-pixel centres, then rounded."""
    (h, w), (out_h, out_w) = image_hwc.shape[:2], size_hw
    y0, y1, dy = _neighbours(h, out_h)
    x0, x1, dx = _neighbours(w, out_w)
    upper, lower = image_hwc[y0].astype(np.float32), image_hwc[y1].astype(np.float32)
    dx, dy = dx[None, :, None], dy[:, None, None]
    upper = upper[:, x0] + (upper[:, x1] - upper[:, x0]) * dx
    lower = lower[:, x0] + (lower[:, x1] - lower[:, x0]) * dx
    return np.rint(upper + (lower - upper) * dy).astype(np.uint8)


def _neighbours(size: int, out_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scale = np.float32(size) / np.float32(out_size)
    at = (np.arange(out_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    low = np.floor(at)
    first = np.maximum(low, 0).astype(np.int64)
    second = np.minimum(low + 1, size - 1).astype(np.int64)
    return first, second, at - low


def _by_channels(image_hwc: np.ndarray, part: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    channels = image_hwc.shape[-1]
    if channels <= 3:
        return part(image_hwc)
    return np.concatenate([part(image_hwc[..., i : i + 3]) for i in range(0, channels, 3)], axis=-1)
