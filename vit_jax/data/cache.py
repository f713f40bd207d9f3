"""What every epoch makes of an example again, kept in memory up to a limit: the same batches, sooner.

That is the crop, where it is not drawn at random, and otherwise the picture: JPEG files as they are, since
each crop decodes another part of them, and other formats as their pixels. Dims: h w pixels, c channels.
"""

import dataclasses
import threading

import numpy as np

from vit_jax.data import transforms
from vit_jax.data.decode import Encoded
from vit_jax.data.sources import Get, Source
from vit_jax.data.transforms import Cropped
from vit_jax.sections import Data


def keep(source: Source, cfg: Data, image_hw: tuple[int, int], *, train: bool) -> Source:
    """`source` for crops of `image_hw`, with up to `cfg.cache_gib` of it in memory; itself if that is 0."""
    if not cfg.cache_gib:
        return source
    random_crops = train and cfg.augment == "inception"

    def fixed(index: int) -> tuple[Encoded | np.ndarray, int]:
        picture, label = source.get(index)
        if not random_crops:
            return transforms.for_evaluation(picture, cfg, image_hw).view(Cropped), label
        if isinstance(picture, Encoded) and picture.jpeg is None:
            picture = picture.pixels(cfg.channels)
        return picture, label

    return dataclasses.replace(source, get=_Cache(fixed, cfg.cache_gib * 2**30).get)


class _Cache:
    """`get(index)` for the threads of one process; what there is no room for is made again each time."""

    def __init__(self, make: Get, room_bytes: float) -> None:
        self._make, self._room_bytes = make, room_bytes
        self._held: dict[int, tuple[Encoded | np.ndarray, int]] = {}
        self._lock = threading.Lock()

    def get(self, index: int) -> tuple[Encoded | np.ndarray, int]:
        held = self._held.get(index)
        if held is None:
            held = self._make(index)
            self._hold(index, held)
        picture, label = held
        # An `Encoded` remembers what it decodes, which is not counted here: each user has one of its own.
        return (Encoded(picture.data, picture.name) if isinstance(picture, Encoded) else picture), label

    def _hold(self, index: int, example: tuple[Encoded | np.ndarray, int]) -> None:
        picture = example[0]
        size_bytes = len(picture.data) if isinstance(picture, Encoded) else picture.nbytes
        with self._lock:
            if index not in self._held and size_bytes <= self._room_bytes:
                self._held[index] = example
                self._room_bytes -= size_bytes
