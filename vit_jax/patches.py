"""Images of their own aspect as rows of patches, so that few shapes hold them all (NaFlex).

arXiv:2307.06304 (NaViT), arXiv:2502.14786 (SigLIP 2). Dims: b batch, n patches, p pixels of a patch's side,
h w pixels, y x patches, c channels.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

LEAST_SCALE, MOST_SCALE, SCALE_STEP = 1e-6, 100.0, 1e-5  # of transformers' Siglip2ImageProcessor, and of timm


class Patches(NamedTuple):
    """Images of any aspect in arrays of one shape.

    `pixels` [b, n, p, p, c] are patches row by row; those behind an image's last are padding, whatever they
    hold. `grid` [b, 2], int32, has the rows and columns of patches of each image; 0 of a row without one.
    """

    pixels: Any
    grid: Any


@dataclasses.dataclass(frozen=True)
class Native:
    """The size of images that keep their aspect: sides of whole patches, at most `tokens` of them."""

    patch_size: int
    tokens: int

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that an image of height x width pixels is resized to, up or down."""
        y, x = _fit(height, width, self.patch_size, self.tokens)
        return y * self.patch_size, x * self.patch_size


Size = tuple[int, int] | Native  # what images are made: (height, width) pixels, or of their own aspect


def fitted(size: Size, height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels that an image of height x width pixels is resized to."""
    return size.fit(height, width) if isinstance(size, Native) else size


@functools.lru_cache(maxsize=4096)
def _fit(height: int, width: int, p: int, tokens: int) -> tuple[int, int]:
    """Rows and columns of patches: those of the largest scale, found by bisection, that has few enough.

    Both sides are rounded up to whole patches, as in transformers' get_image_size_for_max_num_patches and in
    timm's get_image_size_for_seq, and in their steps, so that the sizes are theirs.
    """
    at = lambda scale: tuple(max(math.ceil(side * scale / p), 1) for side in (height, width))
    low, high = LEAST_SCALE, MOST_SCALE
    while high - low >= SCALE_STEP:
        scale = (low + high) / 2
        low, high = (scale, high) if math.prod(at(scale)) <= tokens else (low, scale)
    y, x = at(low)
    return y, x


def cut(image_hwc: np.ndarray, patch_size: int) -> np.ndarray:
    """The patches of an image of whole ones, [n, p, p, c], row by row."""
    p, (h, w, c) = patch_size, image_hwc.shape
    image_ypxpc = image_hwc.reshape(h // p, p, w // p, p, c)
    return image_ypxpc.swapaxes(1, 2).reshape(-1, p, p, c)


def joined(patches: Patches, row: int) -> np.ndarray:
    """The image [h, w, c] of a row, of no pixels where it has no image."""
    y, x = map(int, patches.grid[row])
    _, _, p, _, c = patches.pixels.shape
    image_yxppc = np.asarray(patches.pixels[row][: y * x]).reshape(y, x, p, p, c)
    return image_yxppc.swapaxes(1, 2).reshape(y * p, x * p, c)
