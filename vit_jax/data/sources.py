"""Where images come from: digits, arrays, a folder of class folders; the rest is in modules of its own."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vit_jax import paths
from vit_jax.data import hugging_face, records, splits, tables
from vit_jax.data.decode import BrokenExample, Encoded, open_pillow, suffixes
from vit_jax.data.source import InMemory, Labelled, Picture, Source, Splits, encoded, some
from vit_jax.errors import UserError
from vit_jax.paths import File
from vit_jax.sections import Data

NO_DATA = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # what systems leave beside people's files, like hidden ones


def open_splits(cfg: Data) -> Splits:
    """Both splits of `cfg`. Raises UserError if they are not there."""
    return Splits(train=open_split(cfg, train=True), eval=open_split(cfg, train=False))


def open_split(cfg: Data, *, train: bool) -> Source:
    """The training or evaluation split of `cfg`. Raises UserError if it is not there."""
    place = cfg.dir if cfg.name in SOURCES else records.tfds_dir(cfg)
    with paths.reached(paths.of(place)):
        source = SOURCES.get(cfg.name, records.tfds)(cfg, train)
    if not source.size:
        field = "train_split" if train else "eval_split"
        raise UserError(f"data.{field} of data.name={cfg.name} has no examples: give another")
    return source


def absent(examples: int, classes: int) -> Splits:
    """Splits of data that is not here, to plan for it."""
    names = tuple(map(str, range(classes)))
    return Splits(Absent(examples, names), Absent(examples, names))


def arrays(images: np.ndarray, labels: Sequence[int] | np.ndarray, class_names: Sequence[str]) -> Source:
    """uint8 images [n, h, w, c] with any number of channels, or [n, h, w], and integer labels [n].

    Labels [n, classes] of 0 and 1 are those of images that may be of several classes, or of none.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise UserError(
            f"got {labels.dtype} labels: classes are whole numbers; to learn numbers (regression) is not "
            "done here"
        )
    if labels.ndim == 2 and (labels.shape[1] != len(class_names) or not np.isin(labels, (0, 1)).all()):
        raise UserError(
            f"got labels {list(labels.shape)} from {labels.min()} to {labels.max()} for {len(class_names)} "
            "classes: want integers [n], or 0 and 1 [n, classes]"
        )
    if len(images) != len(labels) or images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"got {images.dtype} images of shape {images.shape} and {len(labels)} labels: "
            "want uint8 [n, h, w, c] or [n, h, w], and n labels"
        )
    images_nhwc = images[..., None] if images.ndim == 3 else images
    labels = labels.astype(np.uint8 if labels.ndim == 2 else np.int32)
    return InMemory("array", tuple(class_names), images_nhwc, labels)


def digits(*, train: bool) -> Source:
    """1,797 handwritten digits of 8x8 pixels, every fifth of which is for evaluation (359).

    The test split of the UCI data set by E. Alpaydin and C. Kaynak (doi:10.24432/C50P49, CC BY 4.0), in the
    file that scikit-learn has.
    """
    path = Path(__file__).parent / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",")  # 64 pixels, stored as 0..16, and the label
    table = table[(np.arange(len(table)) % 5 != 4) == train]
    images = (table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return arrays(images, table[:, -1].astype(np.int32), [str(i) for i in range(10)])


@dataclasses.dataclass(frozen=True)
class Absent(Source):
    """Stands in for data that is not on this machine: only its sizes are known."""

    examples: int
    class_names: tuple[str, ...]

    @property
    def size(self) -> int:
        """The number of examples."""
        return self.examples

    def get(self, index: int) -> tuple[Picture, int]:
        """Raises BrokenExample: there are no examples."""
        raise BrokenExample(f"example {index} is not here: the data was only planned for")

    def labels(self) -> np.ndarray:
        """int32 [size], as many of each class: no plan depends on more."""
        return np.arange(self.examples, dtype=np.int32) % np.int32(len(self.class_names))

    def files(self) -> list[File]:
        """There are none."""
        return []


@dataclasses.dataclass(frozen=True)
class Folder(Labelled):
    """Image files, as paths below `root`, and their labels."""

    root: str
    class_names: tuple[str, ...]
    images: list[str]
    labels_n: np.ndarray
    left_out: str = ""  # what else is there, in words

    def get(self, index: int) -> tuple[Encoded, int]:
        """Example `index`. Raises BrokenExample if its file cannot be read."""
        return encoded(self.path(index)), int(self.labels_n[index])

    def path(self, index: int) -> str:
        """The file of example `index`."""
        return os.path.join(self.root, self.images[index])

    def files(self) -> list[File]:
        """Every file below the folder."""
        return paths.files_below(_followed(self.root))

    def note(self) -> str:
        """What in the folder is no example."""
        return f"note: {self.root}: left out {self.left_out}" if self.left_out else ""


@dataclasses.dataclass(frozen=True)
class Files(Source):
    """Image files, here or in a bucket, of no class: the label of each is its place in the list."""

    images: list[str]
    class_names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The number of images."""
        return len(self.images)

    def get(self, index: int) -> tuple[Encoded, int]:
        """Image `index`. Raises BrokenExample if its file cannot be read."""
        return encoded(self.images[index]), index

    def path(self, index: int) -> str:
        """The file of image `index`."""
        return self.images[index]

    def files(self) -> list[File]:
        """Those that are there."""
        return paths.stats(self.images)


def folder(cfg: Data, *, train: bool) -> Source:
    """`dir/{train,val,...}/class/*`, or `dir/class/*` with a tenth of the files kept for evaluation.

    Hidden files, what is no image, and folders without images are no data: `note()` counts them.
    """
    root = paths.of(cfg.dir)
    if not paths.is_folder(root):
        raise UserError(f"data.dir={cfg.dir} is not a folder")
    has_splits = (root / cfg.train_split).is_dir()
    if not has_splits:
        splits.want_plain(cfg, f"data.dir={cfg.dir}")
    split_dir = root
    if has_splits:
        have = [s for s in splits.EVAL_SPLITS if (root / s).is_dir()]
        split_dir = root / splits.pick(cfg, have, train=train)
        if not split_dir.is_dir():
            raise UserError(f"data.dir={cfg.dir} has no folder {split_dir.name}: set data.eval_split")
    classes_dir = root / cfg.train_split if has_splits else root
    names = tuple(name for name in _folders(classes_dir) if _has_images(classes_dir / name))
    images, left_out = _list(split_dir)
    if unknown := sorted(images.keys() - set(names)):
        raise UserError(
            f"data.dir={split_dir} has classes that {classes_dir} lacks ({some(unknown)}): "
            "rename or remove their folders"
        )
    files = [(file, label) for label, name in enumerate(names) for file in images.get(name, ())]
    if not has_splits:
        held_out = splits.held_out(images.values(), cfg.held_out)
        files = [(file, label) for file, label in files if (file in held_out) != train]
    if not files:
        use = "training" if train else "evaluation"
        raise UserError(
            f"data.dir={split_dir} has no images for {use}: want one folder per class, with images in it, "
            "or data.name=table for a metadata.csv"
        )
    found, labels = zip(*files, strict=True)
    return Folder(str(split_dir), names, list(found), np.array(labels, np.int32), left_out)


def images_below(place: paths.Path) -> tuple[list[str], str]:
    """Image files below a folder, as sorted paths from it; and in words, what else is there."""
    images, left_out = [], Counter[str]()
    for file in paths.names_below(place):
        if what := _left_out(file):
            left_out[what] += 1
        else:
            images.append(file)
    return sorted(images), ", ".join(f"{what}: {count:,}" for what, count in sorted(left_out.items()))


def read_image(path: paths.Path) -> Image.Image:
    """The image of a file. Raises UserError naming what cannot be read."""
    try:
        return open_pillow(paths.read(str(path)), str(path))
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e


def _followed(root: str) -> paths.Path:
    """Without links, so that equal folders have equal names."""
    path = paths.of(root)
    return path.resolve() if isinstance(path, Path) else path


def _list(split_dir: paths.Path) -> tuple[dict[str, list[str]], str]:
    """{class: its images, as paths from the folder of class folders}; and in words, what else is there."""
    files, left_out = images_below(split_dir)
    images: dict[str, list[str]] = {name: [] for name in _folders(split_dir)}
    for file in files:
        name, inside, _ = file.partition("/")
        if inside:
            images[name].append(file)
    outside = len(files) - sum(map(len, images.values()))
    empty = [name for name, found in images.items() if not found]
    words = [left_out, f"images outside class folders: {outside:,}" if outside else ""]
    words.append(f"folders without images: {some(empty)}" if empty else "")
    return {name: found for name, found in images.items() if found}, "; ".join(filter(None, words))


def _folders(place: paths.Path) -> list[str]:
    return [name for name in paths.folders_in(place) if not _hidden(name)]


def _has_images(folder: paths.Path) -> bool:
    return any(not _left_out(file) for file in paths.names_below(folder))


def _left_out(file: str) -> str:
    """Why a file is no example, or nothing."""
    if any(map(_hidden, file.split("/"))):
        return "hidden files"
    return "" if os.path.splitext(file)[1].lower() in suffixes() else "files that are no images"


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in NO_DATA


def _digits(cfg: Data, train: bool) -> Source:
    splits.want_plain(cfg, "data.name=digits")
    return digits(train=train)


# By data.name; every other name is a TFDS data set.
SOURCES: dict[str, Callable[[Data, bool], Source]] = {
    "digits": _digits,
    "folder": lambda cfg, train: folder(cfg, train=train),
    "table": tables.table,
    "parquet": hugging_face.parquet,
    "arrow": hugging_face.arrow,
    "cifar": records.cifar,
}

# TFDS data sets: training examples and classes, as published, to plan without them.
PUBLISHED = {
    "imagenet2012": (1_281_167, 1000),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "fashion_mnist": (60_000, 10),
    "oxford_iiit_pet": (3_680, 37),
    "oxford_flowers102": (1_020, 102),
}
