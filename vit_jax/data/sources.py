"""Where images come from: embedded digits, arrays, a folder of class folders, prepared TFDS data sets.

A source is random access to (image, label) pairs; images are decoded here, transformed in `transforms.py`.
"""

import dataclasses
import io
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vit_jax.config import Data
from vit_jax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
EVAL_SPLITS = ("validation", "val", "test")
FOLDER_EVAL_PARTS = 10  # one part in ten of a folder without splits is kept for evaluation


@dataclasses.dataclass(frozen=True)
class Source:
    """`get(i)` gives example i as a Pillow image and a label. Raises UserError naming what cannot be read."""

    size: int
    class_names: tuple[str, ...]
    get: Callable[[int], tuple[Image.Image, int]]


def open_split(cfg: Data, *, train: bool) -> Source:
    """The training or evaluation split of `cfg`. Raises UserError if it is not there."""
    if cfg.name == "digits":
        return digits(train=train)
    if cfg.name == "folder":
        return folder(cfg, train=train)
    return tfds(cfg, train=train)


def arrays(images: np.ndarray, labels: Sequence[int] | np.ndarray, class_names: Sequence[str]) -> Source:
    """uint8 images [n, h, w, c] or [n, h, w] and integer labels [n] held in memory."""
    if len(images) != len(labels) or images.dtype != np.uint8:
        raise UserError(
            f"got {len(images)} {images.dtype} images and {len(labels)} labels: give as many, in uint8"
        )
    squeeze = images.ndim == 4 and images.shape[-1] == 1
    planes = images[..., 0] if squeeze else images
    return Source(len(planes), tuple(class_names), lambda i: (Image.fromarray(planes[i]), int(labels[i])))


def digits(*, train: bool) -> Source:
    """1,797 handwritten digits of 8x8 pixels from scikit-learn: every fifth is for evaluation (359)."""
    from sklearn import datasets  # slow to import, and only needed here

    data: Any = datasets.load_digits()
    kept = (np.arange(len(data.target)) % 5 != 4) == train
    images = (data.images[kept] * (255 / 16)).astype(np.uint8)  # stored as 0..16
    return arrays(images, data.target[kept], [str(i) for i in range(10)])


def folder(cfg: Data, *, train: bool) -> Source:
    """`dir/{train,val,...}/class/*`, or `dir/class/*` with a tenth of the files kept for evaluation."""
    root = Path(cfg.dir)
    if not root.is_dir():
        raise UserError(f"data.dir={cfg.dir} is not a folder")
    has_splits = (root / cfg.train_split).is_dir()
    if has_splits:
        found = cfg.eval_split or next((s for s in EVAL_SPLITS if (root / s).is_dir()), EVAL_SPLITS[0])
        split_dir = root / (cfg.train_split if train else found)
        if not split_dir.is_dir():
            raise UserError(f"data.dir={cfg.dir} has no folder {split_dir.name}: set data.eval_split")
    else:
        split_dir = root
    classes_dir = root / cfg.train_split if has_splits else root
    names = tuple(sorted(p.name for p in classes_dir.iterdir() if p.is_dir()))
    files = [(f, i) for i, name in enumerate(names) for f in _images_in(split_dir / name)]
    if not has_splits:
        files = [(f, i) for f, i in files if _is_eval(f, root) != train]
    if not files:
        use = "training" if train else "evaluation"
        raise UserError(
            f"data.dir={split_dir} has no images for {use}: want one folder a class, with images in it"
        )
    return Source(
        len(files), names, lambda i: (decode(files[i][0].read_bytes(), str(files[i][0])), files[i][1])
    )


def tfds(cfg: Data, *, train: bool) -> Source:
    """A prepared TFDS data set in array_record form, read without TensorFlow."""
    import tensorflow_datasets as tfds  # half a second, and only needed here

    data_dir = os.path.expanduser(cfg.dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    try:
        builder: Any = tfds.builder(cfg.name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as e:
        raise _not_prepared(cfg.name, data_dir) from e
    if not Path(builder.data_dir).is_dir():
        raise _not_prepared(cfg.name, data_dir)
    splits: list[str] = list(builder.info.splits)
    split = cfg.train_split if train else cfg.eval_split
    split = split or next((s for s in EVAL_SPLITS if s in splits), "validation")
    if split.partition("[")[0] not in splits:
        raise UserError(f"{cfg.name} has no split {split}: it has {', '.join(splits)}")
    records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})

    def get(i: int) -> tuple[Image.Image, int]:
        record = records[i]
        return decode(record["image"], f"{cfg.name} {split} record {i}"), int(record["label"])

    return Source(len(records), tuple(builder.info.features["label"].names), get)


def read_image(path: Path) -> Image.Image:
    """The image of a file. Raises UserError naming what cannot be read."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e


def decode(data: bytes, name: str) -> Image.Image:
    """Encoded bytes to an upright Pillow image. Raises UserError naming what cannot be read."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return ImageOps.exif_transpose(image)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as e:
        raise UserError(f"{name} is not a readable image: {e}") from e


def _images_in(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(f for f in directory.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)


def _is_eval(file: Path, root: Path) -> bool:
    # By name, not by rank: adding files does not move others between the splits.
    return zlib.crc32(file.relative_to(root).as_posix().encode()) % FOLDER_EVAL_PARTS == 0


def _not_prepared(name: str, data_dir: str) -> UserError:
    return UserError(
        f"data set {name} is not prepared in {data_dir}: set data.dir, or prepare it once with "
        f"`pip install tensorflow && tfds build {name} --file_format=array_record --data_dir={data_dir}`"
    )
