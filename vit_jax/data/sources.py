"""Where images come from: digits, arrays, a folder of class folders; `records.py` has TFDS and others.

A source is random access to (picture, label) pairs; encoded pictures are decoded in `transforms.py`, once it
is known which part of them is needed. Sources travel to worker processes, so they are plain dataclasses.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vit_jax.data import records
from vit_jax.data.decode import BrokenExample, Encoded, open_pillow
from vit_jax.errors import UserError
from vit_jax.sections import Data

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
EVAL_SPLITS = ("validation", "val", "test")
FOLDER_EVAL_PARTS = 10  # one part in ten of a folder without splits is kept for evaluation

Get = Callable[[int], tuple[Encoded | np.ndarray, int]]


@dataclasses.dataclass(frozen=True)
class Source:
    """`get(i)` gives example i as a picture (encoded, or uint8 [h, w, c]) and a label.

    `get` raises BrokenExample naming what cannot be read. `labels()` gives all labels without reading images
    where that is possible, else None.
    """

    size: int
    class_names: tuple[str, ...]
    get: Get
    labels: Callable[[], np.ndarray | None] = lambda: None


def open_split(cfg: Data, *, train: bool) -> Source:
    """The training or evaluation split of `cfg`. Raises UserError if it is not there."""
    if cfg.name == "digits":
        return digits(train=train)
    if cfg.name == "folder":
        return folder(cfg, train=train)
    make = {"parquet": records.parquet, "cifar": records.cifar}.get(cfg.name, records.tfds)
    found = make(cfg, train=train)
    return Source(len(found), found.class_names, found.get, found.labels)


def arrays(images: np.ndarray, labels: Sequence[int] | np.ndarray, class_names: Sequence[str]) -> Source:
    """uint8 images [n, h, w, c] with any number of channels, or [n, h, w], and integer labels [n]."""
    if len(images) != len(labels) or images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"got {images.dtype} images of shape {images.shape} and {len(labels)} labels: "
            "want uint8 [n, h, w, c] or [n, h, w], and n labels"
        )
    images_nhwc = images[..., None] if images.ndim == 3 else images
    held = _Arrays(images_nhwc, np.asarray(labels, np.int32))
    return Source(len(images), tuple(class_names), held.get, held.all_labels)


def digits(*, train: bool) -> Source:
    """1,797 handwritten digits of 8x8 pixels from scikit-learn: every fifth is for evaluation (359)."""
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise UserError("data.name=digits reads a file of scikit-learn: install scikit-learn")
    # The file alone: to import the package takes longer than all else before the first step.
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",")  # 64 pixels, stored as 0..16, and the label
    table = table[(np.arange(len(table)) % 5 != 4) == train]
    images = (table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return arrays(images, table[:, -1].astype(np.int32), [str(i) for i in range(10)])


def folder(cfg: Data, *, train: bool) -> Source:
    """`dir/{train,val,...}/class/*`, or `dir/class/*` with a tenth of the files kept for evaluation."""
    root = Path(cfg.dir)
    if not root.is_dir():
        raise UserError(f"data.dir={cfg.dir} is not a folder")
    has_splits = (root / cfg.train_split).is_dir()
    split_dir = root
    if has_splits:
        found = cfg.eval_split or next((s for s in EVAL_SPLITS if (root / s).is_dir()), EVAL_SPLITS[0])
        split_dir = root / (cfg.train_split if train else found)
        if not split_dir.is_dir():
            raise UserError(f"data.dir={cfg.dir} has no folder {split_dir.name}: set data.eval_split")
    classes_dir = root / cfg.train_split if has_splits else root
    names = _folders(classes_dir)
    if unknown := sorted(set(_folders(split_dir)) - set(names)):
        raise UserError(
            f"data.dir={split_dir} has classes that {classes_dir} lacks ({', '.join(unknown[:4])}): "
            "rename or remove their folders"
        )
    files, labels = _list(split_dir, names)
    if not has_splits:
        kept = [i for i, file in enumerate(files) if _is_eval(file) != train]
        files, labels = [files[i] for i in kept], [labels[i] for i in kept]
    if not files:
        use = "training" if train else "evaluation"
        raise UserError(
            f"data.dir={split_dir} has no images for {use}: want one folder a class, with images in it"
        )
    held = _Files(str(split_dir), files, np.array(labels, np.int32))
    return Source(len(files), names, held.get, held.all_labels)


def files_of(cfg: Data) -> list[tuple[str, int, int]]:
    """(path, bytes, time of change in ns) of every file that `cfg` may read, sorted.

    Equal lists mean the same examples, as far as is known without reading them.
    """
    if cfg.name == "digits":
        return []
    root = Path(cfg.dir)
    if cfg.name not in ("folder", "parquet", "cifar"):
        root = Path(records.tfds_dir(cfg), re.split("[:/]", cfg.name)[0])
    found = []
    for folder, _, names in os.walk(root.resolve(), followlinks=True):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):  # a link to nowhere is no example
                stat = os.stat(path)
                found.append((path, stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def read_image(path: Path) -> Image.Image:
    """The image of a file. Raises UserError naming what cannot be read."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e


def decode(data: bytes, name: str) -> Image.Image:
    """Encoded bytes to an upright Pillow image. Raises UserError naming what cannot be read."""
    return open_pillow(data, name)


@dataclasses.dataclass(frozen=True)
class _Arrays:
    images_nhwc: np.ndarray
    labels_n: np.ndarray

    def get(self, index: int) -> tuple[np.ndarray, int]:
        return self.images_nhwc[index], int(self.labels_n[index])

    def all_labels(self) -> np.ndarray:
        return self.labels_n


@dataclasses.dataclass(frozen=True)
class _Files:
    root: str
    files: list[str]
    labels_n: np.ndarray

    def get(self, index: int) -> tuple[Encoded, int]:
        path = os.path.join(self.root, self.files[index])
        try:
            data = Path(path).read_bytes()
        except OSError as e:
            raise BrokenExample(f"{path} cannot be read: {e.strerror}") from e
        return Encoded(data, path), int(self.labels_n[index])

    def all_labels(self) -> np.ndarray:
        return self.labels_n


def _folders(place: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _list(split_dir: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Image files below each class folder, relative to `split_dir` and sorted, with their labels."""
    files, labels = [], []
    for label, name in enumerate(names):
        below = (split_dir / name).rglob("*")
        found = sorted(
            f.relative_to(split_dir).as_posix() for f in below if f.suffix.lower() in IMAGE_SUFFIXES
        )
        files += found
        labels += [label] * len(found)
    return files, labels


def _is_eval(file: str) -> bool:
    # By name, not by rank: adding files does not move others between the splits.
    return zlib.crc32(file.encode()) % FOLDER_EVAL_PARTS == 0
