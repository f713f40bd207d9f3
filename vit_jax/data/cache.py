"""What every epoch makes of an example again, kept in memory up to a limit: the same batches, sooner.

That is the crop, where it is not drawn at random, and otherwise the picture: JPEG files as they are, since
each crop decodes another part of them, and other formats as their pixels. Dims: h w pixels, c channels.
"""

import dataclasses
import mmap
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vit_jax.data import transforms
from vit_jax.data.decode import Encoded
from vit_jax.data.source import File, Label, Picture, Source
from vit_jax.data.transforms import Cropped
from vit_jax.errors import UserError
from vit_jax.patches import Size
from vit_jax.sections import Data


def keep(source: Source, cfg: Data, image_size: Size, *, train: bool) -> Source:
    """`source` for crops of `image_size`, with up to `cfg.cache_gib` of it in memory; itself if that is 0.

    Raises UserError if the system does not promise so much memory.
    """
    if not cfg.cache_gib:
        return source
    random_crops = train and cfg.augment in ("inception", "window")

    def fixed(index: int) -> tuple[Picture, Label]:
        picture, label = source.get(index)
        if not random_crops:
            return transforms.for_evaluation(picture, cfg, image_size).view(Cropped), label
        if isinstance(picture, Encoded) and picture.jpeg is None:
            picture = picture.pixels(cfg.channels)
        return picture, label

    return Kept(source.class_names, source, _Cache(fixed, cfg.cache_gib))


@dataclasses.dataclass(frozen=True)
class Kept(Source):
    """A source whose examples come from a cache."""

    class_names: tuple[str, ...]
    source: Source
    cache: "_Cache"

    @property
    def size(self) -> int:
        """The number of examples."""
        return self.source.size

    @property
    def multi_label(self) -> bool:
        """Whether an example may be of several classes."""
        return self.source.multi_label

    def get(self, index: int) -> tuple[Picture, Label]:
        """Example `index`, made once if there is room for it."""
        return self.cache.get(index)

    def path(self, index: int) -> str:
        """The file of an example."""
        return self.source.path(index)

    def files(self) -> list[File]:
        """What the examples are read from."""
        return self.source.files()

    def labels(self) -> np.ndarray | None:
        """As those of the source."""
        return self.source.labels()

    def note(self) -> str:
        """What of the data is left out."""
        return self.source.note()


class _Held(NamedTuple):
    """Where an example lies, and what it is: pixels of `shape`, or a file called `name`."""

    place: slice
    kind: type[Encoded] | type[np.ndarray]
    shape: tuple[int, ...]
    name: str
    label: Label


class _Cache:
    """`get(index)` for the threads of one process; what there is no room for is made again each time.

    The memory is one block, promised by the system at once and taken as it is filled: the limit holds to the
    byte, and what is too much is refused before the first step.
    """

    def __init__(self, make: Callable[[int], tuple[Picture, Label]], room_gib: float) -> None:
        try:
            self._bytes = np.frombuffer(mmap.mmap(-1, max(int(room_gib * 2**30), 1)), np.uint8)
        except (OSError, OverflowError, ValueError) as e:
            raise UserError(f"data.cache_gib={room_gib}: there is not so much memory: set it lower") from e
        self._make, self._used = make, 0
        self._held: dict[int, _Held] = {}
        self._lock = threading.Lock()

    def get(self, index: int) -> tuple[Picture, Label]:
        held = self._held.get(index)
        if held is None:
            picture, label = self._make(index)
            self._hold(index, picture, label)
            return picture, label
        stored = self._bytes[held.place]
        if issubclass(held.kind, Encoded):
            return Encoded(stored.tobytes(), held.name), held.label
        stored.flags.writeable = False
        return stored.reshape(held.shape).view(held.kind), held.label

    def _hold(self, index: int, picture: Picture, label: Label) -> None:
        if isinstance(picture, Encoded):
            flat, shape, name = np.frombuffer(picture.data, np.uint8), (), picture.name
        else:
            flat, shape, name = picture.ravel(), picture.shape, ""
        with self._lock:
            place = slice(self._used, self._used + flat.size)
            if place.stop > self._bytes.size or index in self._held:
                return
            self._used = place.stop
        self._bytes[place] = flat
        self._held[index] = _Held(place, type(picture), shape, name, label)  # now that it can be read
