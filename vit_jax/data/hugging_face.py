"""Data sets of Hugging Face with the images inside: parquet files of the hub, and folders of save_to_disk."""

import dataclasses
import functools
import json
import pathlib
import re
from typing import Any

import numpy as np

from vit_jax import paths
from vit_jax.data import labels, splits
from vit_jax.data.decode import BrokenExample, Encoded
from vit_jax.data.source import InMemory, Label, Labelled, encoded, label_at
from vit_jax.data.tables import LABEL_COLUMNS, read_parquet
from vit_jax.errors import first_line
from vit_jax.extras import need
from vit_jax.fields import fail
from vit_jax.paths import File, Path
from vit_jax.sections import Data

SPLITS, STATE = "dataset_dict.json", "state.json"  # of a folder of splits, and of one split


def parquet(cfg: Data, train: bool) -> InMemory:
    """`dir/**/SPLIT-*.parquet` with columns image (bytes, path) and label, as on the Hugging Face hub."""
    root = paths.of(cfg.dir)
    files = [root / name for name in sorted(paths.names_below(root)) if re.search(r"-[^/]*\.parquet$", name)]
    split = splits.pick(cfg, {f.name.partition("-")[0] for f in files}, train=train)
    of_split = lambda split: [f for f in files if f.name.startswith(f"{split}-")]
    if not of_split(split):
        fail(f"data.dir={cfg.dir} has no {split}-*.parquet: set the split that it has")
    tables = [read_parquet(f) for f in of_split(split)]
    column = _columns(tables[0].schema, str(of_split(split)[0]))
    images = [image and image["bytes"] for t in tables for image in t["image"].to_pylist()]
    labelled = _labels(tables, column, f"{cfg.dir} {split}")
    names = labelled.names
    if not names and not train:
        trained_on = [read_parquet(f) for f in of_split(cfg.train_split)]
        before = _labels(trained_on, column, f"{cfg.dir} {cfg.train_split}") if trained_on else labelled
        labels.want_alike(before, labelled)
        names = labels.classes(before)
    names = names or labels.classes(labelled)
    read = tuple(map(str, of_split(split)))
    return InMemory(f"{cfg.dir} {split}", names, images, labels.encode(labelled, names), read)


def _columns(schema: Any, place: str) -> str:
    """The column of labels of a table that has one, and one of images. Raises UserError."""
    column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if column is None or "image" not in schema.names:
        fail(f"{place} has columns {', '.join(schema.names)}: want image and label")
    return column


def _labels(tables: list[Any], column: str, place: str) -> labels.LabelColumn:
    import pyarrow as pa
    import pyarrow.types as types

    chunks = [chunk for t in tables for chunk in t[column].chunks]
    schema = tables[0].schema
    names = labels.described(schema, column)
    labelled = labels.of_column(pa.chunked_array(chunks, schema.field(column).type), place, names)
    if types.is_integer(schema.field(column).type) and not names:  # numbers of classes, if unnamed
        most = max((int(label) for row in labelled.rows for label in row), default=-1)
        labelled = labelled._replace(rows=[[int(x) for x in row] for row in labelled.rows])
        labelled = labelled._replace(names=tuple(map(str, range(most + 1))))
    return labelled


@dataclasses.dataclass(frozen=True)
class Arrow(Labelled):
    """Rows of the arrow files of one split, which are mapped into memory and not read whole."""

    name: str
    class_names: tuple[str, ...]
    shards: tuple[File, ...]
    rows_n: np.ndarray
    labels_n: np.ndarray

    def get(self, index: int) -> tuple[Encoded, Label]:
        """Example `index`. Raises BrokenExample if it has no image."""
        row, label = int(self.rows_n[index]), label_at(self.labels_n, index)
        name, cell = f"{self.name} row {row}", _opened(self.shards)["image"][row].as_py()
        data, path = (cell["bytes"], cell["path"]) if isinstance(cell, dict) else (cell, None)
        if data is None and path:
            return encoded(path), label
        if data is None:
            raise BrokenExample(f"{name} has no image")
        return Encoded(data, name), label

    def files(self) -> list[File]:
        """The arrow files."""
        return list(self.shards)


def arrow(cfg: Data, train: bool) -> Arrow:
    """What `datasets` wrote with save_to_disk to `cfg.dir`: a DatasetDict, or a Dataset without splits.

    Of the latter a tenth is kept for evaluation, by the number of the row. Raises UserError.
    """
    root = paths.of(cfg.dir)
    if (root / STATE).is_file():
        splits.want_plain(cfg, f"data.dir={cfg.dir}")
        labelled, shards = _label_column(root, cfg.dir)
        names = labels.classes(labelled)
        labels_n = labels.encode(labelled, names)
        rows = [str(row) for row in range(len(labels_n))]
        held = splits.held_out(splits.by_labels(rows, labels_n, len(names)), cfg.held_out)
        rows_n = np.array([int(row) for row in rows if (row in held) != train], np.int64)
        if not rows_n.size:
            fail(f"data.dir={cfg.dir} has no rows for {'training' if train else 'evaluation'}: give more")
        return Arrow(cfg.dir, names, shards, rows_n, labels_n[rows_n])
    if not (root / SPLITS).is_file():
        fail(f"data.dir={cfg.dir} has no {SPLITS} or {STATE}: want a folder that save_to_disk wrote")
    have: list[str] = _json(root / SPLITS).get("splits", [])
    split = splits.pick(cfg, have, train=train)
    for name in (cfg.train_split, split):
        if name not in have:
            fail(f"data.dir={cfg.dir} has no split {name}: it has {', '.join(have)}")
    labelled, shards = _label_column(root / split, f"{cfg.dir} {split}")
    before = labelled if train else _label_column(root / cfg.train_split, f"{cfg.dir} {cfg.train_split}")[0]
    labels.want_alike(before, labelled)
    names = labels.classes(before)
    labels_n = labels.encode(labelled, names)
    return Arrow(f"{cfg.dir} {split}", names, shards, np.arange(len(labels_n)), labels_n)


def _label_column(folder: Path, place: str) -> tuple[labels.LabelColumn, tuple[File, ...]]:
    """The labels of a split, and its files."""
    if not (folder / STATE).is_file():
        fail(f"{folder} has no {STATE}: copy all of what save_to_disk wrote")
    state = _json(folder / STATE)
    if state.get("_indices_data_files"):
        fail(f"{folder} is a selection of other rows, as older versions of datasets wrote: save it again")
    names = [str(folder / file["filename"]) for file in state.get("_data_files", ())]
    shards = tuple(paths.stats(names))
    if not names or len(shards) < len(names):
        what = f"{len(names) - len(shards)} of its {len(names)} arrow files" if names else "its arrow files"
        fail(f"{folder} lacks {what}: copy all of what save_to_disk wrote")
    opened = _opened(shards)
    return _labels_of(opened, place), shards


def _labels_of(opened: Any, place: str) -> labels.LabelColumn:
    import pyarrow.types as types

    column = _columns(opened.schema, place)
    kind = opened.schema.field("image").type
    held = types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
    if not (held or types.is_binary(kind) or types.is_large_binary(kind)):
        fail(
            f"{place} has images of type {kind}: want the bytes of image files, as datasets.Image() has them"
        )
    return labels.of_column(opened[column], place, labels.described(opened.schema, column))


@functools.lru_cache(maxsize=4)  # the splits of a run; not in the source, which travels to processes
def _opened(shards: tuple[File, ...]) -> Any:
    """The pyarrow table of arrow files, of which a bucket's are read and others mapped. Raises UserError."""
    pa = need("pyarrow", "parquet", "data.name=arrow")
    tables = []
    for name in (shard.path for shard in shards):
        here = isinstance(paths.of(name), pathlib.Path)
        try:
            data = pa.memory_map(name) if here else pa.py_buffer(paths.read(name))
            tables.append(pa.ipc.open_stream(data).read_all())
        except (OSError, pa.ArrowInvalid) as e:
            fail(f"{name} cannot be read as an arrow file ({first_line(e)}): copy it again")
    return pa.concat_tables(tables)


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        fail(f"{path} is not JSON ({e}): copy it again")
    return tree if isinstance(tree, dict) else fail(f"{path} is not a JSON object: copy it again")
