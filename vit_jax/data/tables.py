"""Tables of paths and labels: CSV or parquet, also the metadata.csv of Hugging Face's image folders."""

import csv
import dataclasses
import io
import os
from typing import Any

import numpy as np

from vit_jax import paths
from vit_jax.data import labels, splits
from vit_jax.data.decode import Encoded, suffixes
from vit_jax.data.source import Label, Labelled, encoded, label_at
from vit_jax.errors import first_line
from vit_jax.extras import need
from vit_jax.fields import fail
from vit_jax.paths import File, Path
from vit_jax.sections import Data

ENDINGS = (".csv", ".parquet")
PATH_COLUMNS = ("path", "file_name")  # the second is Hugging Face's
LABEL_COLUMNS = ("label", "labels")
ALONE = ("metadata", "labels")  # what a table without splits is called
WANTED = "want the columns path (or file_name) and label"


@dataclasses.dataclass(frozen=True)
class Listed(Labelled):
    """The image files of a table, and their labels."""

    class_names: tuple[str, ...]
    images: list[str]
    labels_n: np.ndarray
    name: str  # of the table

    def get(self, index: int) -> tuple[Encoded, Label]:
        """Example `index`. Raises BrokenExample if its file cannot be read."""
        return encoded(self.images[index]), label_at(self.labels_n, index)

    def path(self, index: int) -> str:
        """The file of example `index`."""
        return self.images[index]

    def files(self) -> list[File]:
        """The table, and the images that are there."""
        names, folder = [self.name, *self.images], paths.of(self.name).parent
        if not paths.in_bucket(folder):
            return paths.stats(names)
        below = {file.path: file for file in paths.files_below(folder)}  # one request, not one per image
        known, others = [below[name] for name in names if name in below], (n for n in names if n not in below)
        return sorted([*known, *paths.stats(others)])


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table as it is: paths from its folder, and labels."""

    file: Path
    images: list[str]
    labelled: labels.LabelColumn


def table(cfg: Data, train: bool) -> Listed:
    """The table `cfg.dir`, or in that folder SPLIT.csv, SPLIT/metadata.csv, metadata.csv or labels.csv.

    Each may be .parquet, too. Paths are from the table's folder. A tenth of a table without splits is kept
    for evaluation, by the same rules as of a folder. Raises UserError for what is wrong in it.
    """
    root = paths.of(cfg.dir)
    alone = root if root.suffix in ENDINGS else _find(root, ALONE)
    of_training = None if root.suffix in ENDINGS else _of_split(root, cfg.train_split)
    if of_training is None:
        if alone is None:
            fail(
                f"data.dir={cfg.dir} has no table of paths and labels: want {cfg.train_split}.csv, "
                f"{cfg.train_split}/metadata.csv, metadata.csv or labels.csv in it (or .parquet), or its name"
            )
        splits.want_plain(cfg, f"data.dir={cfg.dir}")
        return _part(_read(alone), cfg, train=train)
    read = _read(of_training)
    names = labels.classes(read.labelled)
    if not train:
        have = [name for name in splits.EVAL_SPLITS if _of_split(root, name)]
        split = splits.pick(cfg, have, train=False)
        if (of_evaluation := _of_split(root, split)) is None:
            fail(f"data.dir={cfg.dir} has no table {split}.csv or {split}/metadata.csv: set data.eval_split")
        trained_on, read = read, _read(of_evaluation)
        labels.want_alike(trained_on.labelled, read.labelled)
    return _listed(read, names, labels.encode(read.labelled, names), cfg)


def _of_split(root: Path, split: str) -> Path | None:
    return _find(root, (split,)) or _find(root / split, ("metadata",))


def _find(folder: Path, stems: tuple[str, ...]) -> Path | None:
    files = (folder / f"{stem}{ending}" for stem in stems for ending in ENDINGS)
    return next((file for file in files if file.is_file()), None)


def _part(read: _Table, cfg: Data, *, train: bool) -> Listed:
    """The training or evaluation part of a table without splits."""
    names = labels.classes(read.labelled)
    labels_n = labels.encode(read.labelled, names)
    held = splits.held_out(splits.by_labels(read.images, labels_n, len(names)), cfg.held_out)
    at = [i for i, name in enumerate(read.images) if (name in held) != train]
    if not at:
        fail(f"{read.file} has no images for {'training' if train else 'evaluation'}: give more rows")
    part = dataclasses.replace(read, images=[read.images[i] for i in at])
    return _listed(part, names, labels_n[at], cfg)


def _listed(read: _Table, names: tuple[str, ...], labels_n: np.ndarray, cfg: Data) -> Listed:
    """The source of a table. Raises UserError for files that are not there, unless they are to be skipped."""
    folder = read.file.parent
    images = [_below(folder, name) for name in read.images]
    if cfg.on_error == "error" and (absent := _absent(folder, images)):
        fail(
            f"{read.file}: {len(absent):,} of {len(images):,} images are not there, the first "
            f"{absent[0]}: paths are from the table's folder; data.on_error=skip goes on without them"
        )
    return Listed(names, images, labels_n, str(read.file))


def _below(folder: Path, name: str) -> str:
    return name if paths.SCHEME.fullmatch(name) else str(folder / name)


def _absent(folder: Path, images: list[str]) -> list[str]:
    if paths.in_bucket(folder):
        there = {file.path for file in paths.files_below(folder)}  # one request, not one per image
        return [name for name in images if name.startswith(f"{folder}/") and name not in there]
    return [name for name in images if not paths.SCHEME.fullmatch(name) and not os.path.isfile(name)]


def _read(file: Path) -> _Table:
    images, labelled = (_csv if file.suffix == ".csv" else _parquet)(file)
    if not images:
        fail(f"{file} has no rows below its column names: give images and their labels")
    first: dict[str, int] = {}
    for i, name in enumerate(images):
        if not name:
            fail(f"{file} has no path in {labelled.row(i)}: name an image, or leave it out")
        if (before := first.setdefault(_below(file.parent, name), i)) != i:
            fail(
                f"{file} has {name} twice, in {labelled.row(before)} and {labelled.row(i)}: give an image "
                "one row, and for several labels a column label each"
            )
    return _Table(file, images, labelled)


def _csv(file: Path) -> tuple[list[str], labels.LabelColumn]:
    try:
        text = paths.read(str(file)).decode("utf-8-sig")
    except OSError as e:
        fail(f"{file} cannot be read: {e.strerror}")
    except UnicodeDecodeError as e:
        fail(f"{file} is not UTF-8 text (byte {e.start:,} is {e.object[e.start]:#x}): save it as UTF-8")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as e:
        fail(f"{file} line {reader.line_num} is not CSV: {e}")
    if not rows:
        fail(f"{file} is empty: {WANTED}")
    _, header = rows.pop(0)
    if os.path.splitext(header[0])[1].lower() in suffixes():
        fail(f"{file} begins with the example {','.join(header)}, without a line of column names: {WANTED}")
    path = _path_column(file, header)
    columns = [i for i, name in enumerate(header) if name == "label"]
    if not columns:
        fail(f"{file} has the columns {', '.join(header)}: {WANTED}, as often as an image has labels")
    images, given = [], []
    for line, row in rows:
        if len(row) > len(header) or len(row) <= path:
            fail(f"{file} row {line} has {len(row)} cells, the column names {len(header)}: want as many")
        images.append(os.path.normpath(row[path]) if row[path] else "")
        given.append([row[i] for i in columns if i < len(row) and row[i]])
    labelled = labels.LabelColumn(str(file), given, len(columns) > 1, at=[line for line, _ in rows])
    return images, labels.of_text(labelled)


def _parquet(file: Path) -> tuple[list[str], labels.LabelColumn]:
    found = read_parquet(file)
    header: list[str] = found.schema.names
    path = _path_column(file, header)
    column = next((name for name in LABEL_COLUMNS if name in header), None)
    if column is None:
        fail(f"{file} has the columns {', '.join(header)}: {WANTED}")
    images = found.column(path).to_pylist()
    if not all(isinstance(name, str | None) for name in images):
        fail(f"{file} has paths of type {found.schema.field(path).type}: want text")
    images = [os.path.normpath(name) if name else "" for name in images]
    return images, labels.of_column(found[column], str(file), labels.described(found.schema, column))


def _path_column(file: Path, header: list[str]) -> int:
    if (found := next((name for name in PATH_COLUMNS if name in header), None)) is None:
        inside = "; data.name=parquet reads images that are in the file" if "image" in header else ""
        fail(f"{file} has the columns {', '.join(header)}: {WANTED}{inside}")
    return header.index(found)


def read_parquet(file: Path) -> Any:
    """The pyarrow table of a file. Raises UserError if it is not one."""
    pa = need("pyarrow", "parquet", str(file))
    pq = need("pyarrow.parquet", "parquet", str(file))
    try:
        with file.open("rb") as opened:
            return pq.ParquetFile(opened).read()
    except pa.ArrowInvalid as e:
        fail(f"{file} is not a parquet file ({first_line(e)}): write it again")
