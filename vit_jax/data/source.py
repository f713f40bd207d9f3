"""What a source of examples is, and the one that holds them in memory."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from vit_jax import paths
from vit_jax.data.decode import BrokenExample, Encoded
from vit_jax.errors import UserError
from vit_jax.paths import File

Picture = Encoded | np.ndarray  # a file's bytes, or uint8 pixels [h, w, c]
Label = int | np.ndarray  # a class; or of several, uint8 [classes]: 1 at each of them


SHOWN = 4  # names of many in a message
READERS, READ = 8, 256  # threads that read labels, and examples that one of them reads in a go


class Source(Protocol):
    """Random access to the examples of one split.

    Sources travel to worker processes, so they can be pickled. Encoded pictures are decoded in
    `transforms.py`, once it is known which part of them is needed.
    """

    class_names: tuple[str, ...]  # of each label

    @property
    def size(self) -> int:
        """The number of examples."""
        ...

    @property
    def multi_label(self) -> bool:
        """Whether an example may be of several classes, or of none."""
        return False

    def get(self, index: int) -> tuple[Picture, Label]:
        """Picture and label of an example. Raises BrokenExample naming what cannot be read."""
        ...

    def files(self) -> list[File]:
        """All that the examples are read from, sorted: equal lists mean equal examples."""
        ...

    def path(self, index: int) -> str:
        """The file of an example; empty where it has none of its own."""
        return ""

    def labels(self) -> np.ndarray | None:
        """int32 [size], or uint8 [size, classes] of several, if known without reading pictures."""
        return None

    def note(self) -> str:
        """What of the data is left out, as one line; empty if nothing is."""
        return ""


class Splits(NamedTuple):
    """What a run trains on and what it is evaluated on."""

    train: Source
    eval: Source


class Labelled(Source):
    """A source that knows the labels of all its examples."""

    name: str  # for messages
    labels_n: np.ndarray  # int32 [n], or uint8 [n, classes] where an example may be of several

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.labels_n)

    @property
    def multi_label(self) -> bool:
        """Whether an example may be of several classes, or of none."""
        return self.labels_n.ndim == 2

    def labels(self) -> np.ndarray:
        """int32 [size], or uint8 [size, classes]."""
        return self.labels_n

    def note(self) -> str:
        """A line with the number of images without a label; empty if each has one."""
        bare = int((~self.labels_n.any(axis=1)).sum()) if self.multi_label else 0
        return f"note: {self.name}: {bare:,} images have no label: they are of no class" if bare else ""


@dataclasses.dataclass(frozen=True)
class InMemory(Labelled):
    """Pictures and labels held in memory: encoded bytes [n], or uint8 [n, h, w, c].

    `paths` are the files that they come from, if they do.
    """

    name: str
    class_names: tuple[str, ...]
    images: list[bytes | None] | np.ndarray
    labels_n: np.ndarray
    paths: tuple[str, ...] = ()

    def get(self, index: int) -> tuple[Picture, Label]:
        """Example `index`. Raises BrokenExample if it has no image."""
        name, image = f"{self.name} row {index}", self.images[index]
        if image is None:
            raise BrokenExample(f"{name} has no image")
        return (Encoded(image, name) if isinstance(image, bytes) else image), label_at(self.labels_n, index)

    def files(self) -> list[File]:
        """The files, or the digest of what is held."""
        if self.paths:
            return paths.stats(self.paths)
        digest, count = hashlib.sha256(np.asarray(self.labels_n).tobytes()), 0
        for image in self.images:
            held = b"" if image is None else image if isinstance(image, bytes) else image.tobytes()
            digest.update(held)
            count += len(held)
        return [File(f"sha256:{digest.hexdigest()}", count, 0)]


def want_one_class(source: Source, field: str, value: bool | str) -> None:
    """Raise UserError for a field that counts images by their class where each may be of several."""
    if source.multi_label:
        raise UserError(
            f"the data gives several labels per image, {field}={value} counts images by their one class: "
            "leave it out"
        )


def read_labels(source: Source) -> np.ndarray:
    """int32 [size] of a source of one label per example, read without decoding where it does not know them.

    -1 stands for an example that cannot be read.
    """
    known = source.labels()
    if known is not None:
        return known

    def read(first: int) -> list[int]:
        return [_label(source, index) for index in range(first, min(first + READ, source.size))]

    with ThreadPoolExecutor(READERS) as threads:
        parts = threads.map(read, range(0, source.size, READ))
        return np.array([label for part in parts for label in part], np.int32)


def _label(source: Source, index: int) -> int:
    try:
        return int(source.get(index)[1])
    except BrokenExample:
        return -1


def label_at(labels_n: np.ndarray, index: int) -> Label:
    """The label of an example, of labels as `Source.labels` has them."""
    return int(labels_n[index]) if labels_n.ndim == 1 else labels_n[index]


def encoded(path: str) -> Encoded:
    """The bytes of an image file. Raises BrokenExample if it cannot be read."""
    try:
        return Encoded(paths.read(path), path)
    except OSError as e:
        raise BrokenExample(f"{path} cannot be read: {e.strerror}") from e


def labels_in(model: Sequence[str], data: Sequence[str], *, classes: int) -> np.ndarray:
    """A model's label for each class of the data, int32 [classes of the data]: the class of the same name.

    Where no name is known to the model, as numbers and words are unlike, classes correspond in their order.
    Raises UserError for classes that the model has not, and for names that it has more than once.
    """
    in_order = np.arange(classes, dtype=np.int32)
    if not data or tuple(data) == tuple(model):
        return in_order
    known, times = set(data) & set(model), Counter(model)
    if not known and len(data) == classes:
        return in_order
    if not known:
        raise UserError(
            f"the data has {len(data)} classes ({some(data)}), the model {classes} "
            f"({some(model) or 'without names'}): labels of one mean nothing to the other"
        )
    if unknown := [name for name in data if name not in known]:
        raise UserError(
            f"the model has no class of the data's {some(unknown)}: it has {some(model)}; leave out or "
            "rename what it was not trained on"
        )
    if twice := [name for name in data if times[name] > 1]:
        raise UserError(
            f"the model has several classes of the name {some(twice)}: leave them out of the data"
        )
    return np.array([model.index(name) for name in data], np.int32)


def class_name(names: Sequence[str], index: int) -> str:
    """The name of a class, or its number where `names` does not have it."""
    return names[index] if index < len(names) else str(index)


def some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
