"""Data sets that others prepared: TFDS array_record, CIFAR binary files."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import paths, staging
from vit_jax.data import splits
from vit_jax.data.decode import BrokenExample, Encoded
from vit_jax.data.source import InMemory, Source
from vit_jax.errors import UserError, first_line
from vit_jax.extras import need
from vit_jax.paths import File
from vit_jax.sections import Data

CIFAR_PIXELS = 3 * 32 * 32
TFDS_NAME = re.compile(r"[a-zA-Z]\w*(:[\w.]+)?(/[\w.-]+)*")


@dataclasses.dataclass(frozen=True)
class Tfds(Source):
    """One split of a prepared TFDS data set in `folder`."""

    name: str
    class_names: tuple[str, ...]
    records: Any
    folder: str

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.records)

    def get(self, index: int) -> tuple[Encoded, int]:
        """Example `index`. Raises BrokenExample if its record cannot be read."""
        from tensorflow_datasets.proto import tf_example_pb2  # not before TFDS is wanted

        name = f"{self.name} record {index}"
        example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue] - made at run time
        try:
            # These two fields alone: TFDS's own way by a tree of arrays takes ten times as long.
            fields = example.FromString(self.records[index]).features.feature
            (image,), (label,) = fields["image"].bytes_list.value, fields["label"].int64_list.value
        except Exception as e:  # whatever the reader of the file format raises
            raise BrokenExample(f"{name} cannot be read: {first_line(e)}") from e
        return Encoded(image, name), label

    def files(self) -> list[File]:
        """Every file of the data set."""
        return paths.files_below(Path(self.folder).resolve())


def tfds(cfg: Data, train: bool) -> Tfds:
    """A prepared TFDS data set in array_record form, read without TensorFlow. Raises UserError."""
    if not TFDS_NAME.fullmatch(cfg.name):
        raise UserError(
            f"data.name={cfg.name} is not a data set: use digits, folder, or the name of a TFDS data set"
        )
    tfds = need("tensorflow_datasets", "tfds", f"data.name={cfg.name}")
    data_dir = tfds_dir(cfg)
    try:
        builder: Any = tfds.builder(cfg.name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ImportError, AssertionError) as e:
        raise _not_prepared(cfg.name, data_dir) from e
    prepared = paths.of(builder.data_dir)
    if not prepared.is_dir():
        raise _not_prepared(cfg.name, data_dir)
    _want_random_access(cfg.name, prepared)
    have: list[str] = list(builder.info.splits)
    split = splits.pick(cfg, have, train=train)
    if split.partition("[")[0] not in have:
        raise UserError(f"{cfg.name} has no split {split}: it has {', '.join(have)}")
    features = dict(builder.info.features)
    for feature, kind in (("image", tfds.features.Image), ("label", tfds.features.ClassLabel)):
        if not isinstance(features.get(feature), kind):
            raise UserError(
                f"{cfg.name} has no {kind.__name__} called {feature}: it has {', '.join(sorted(features))}"
            )
    if not isinstance(prepared, Path):
        builder = tfds.builder_from_directory(_staged(cfg, prepared, split.partition("[")[0]))
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(split=split, deserialize_method=raw)
    except ValueError as e:
        raise UserError(f"data split {split} of {cfg.name}: {first_line(e)}") from e
    names = tuple(features["label"].names)
    return Tfds(f"{cfg.name} {split}", names, records, str(builder.data_dir))


def _staged(cfg: Data, prepared: paths.Path, split: str) -> Path:
    """A copy on this machine of a data set in a bucket, without its other splits.

    The reader of array_record files wants them on a disk.
    """
    to = Path(cfg.stage_dir or staging.cache_dir() / "data") / str(prepared).removeprefix("gs://")
    shard = re.compile(r".*/\w+-(\w+)\.\w+-\d+-of-\d+")
    files = paths.files_below(prepared)
    wanted = [f for f in files if (match := shard.fullmatch(f.path)) is None or match[1] == split]
    staging.bring(wanted, prepared, to)
    return to


def tfds_dir(cfg: Data) -> str:
    """Where TFDS data sets lie: `cfg.dir`, else $TFDS_DATA_DIR, else TFDS's own default."""
    return os.path.expanduser(cfg.dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def cifar(cfg: Data, train: bool) -> InMemory:
    """CIFAR-10 or CIFAR-100 in the binary version: records of label bytes, then 3x32x32 pixels."""
    splits.want_plain(cfg, "data.name=cifar")
    root = paths.of(cfg.dir)
    fine = (root / "train.bin").is_file()  # CIFAR-100: a coarse label byte comes first
    pattern = (
        ("train.bin" if train else "test.bin")
        if fine
        else ("data_batch_*.bin" if train else "test_batch.bin")
    )
    files = sorted(root.glob(pattern))
    names_file = root / ("fine_label_names.txt" if fine else "batches.meta.txt")
    if not files or not names_file.is_file():
        raise UserError(
            f"data.dir={cfg.dir} has no {pattern} or no {names_file.name}: want CIFAR's binary version"
        )
    record = (2 if fine else 1) + CIFAR_PIXELS
    data = np.concatenate([np.frombuffer(f.read_bytes(), np.uint8) for f in files])
    if data.size % record:
        raise UserError(f"{files[0].parent}/{pattern} is cut short: copy it again")
    rows = data.reshape(-1, record)
    images = rows[:, -CIFAR_PIXELS:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    names = tuple(names_file.read_text(encoding="utf-8").split())
    labels, read = rows[:, -CIFAR_PIXELS - 1].astype(np.int32), tuple(map(str, [*files, names_file]))
    return InMemory(f"{cfg.dir} {pattern}", names, images, labels, read)


def _want_random_access(name: str, prepared: paths.Path) -> None:
    info = prepared / "dataset_info.json"
    stored = (
        json.loads(info.read_text(encoding="utf-8")).get("fileFormat", "tfrecord")
        if info.is_file()
        else "tfrecord"
    )
    if stored in ("array_record", "parquet"):
        return
    raise UserError(
        f"data set {name} in {prepared} is stored as {stored}, without random access: convert it once with "
        "`pip install tensorflow apache-beam && python -m tensorflow_datasets.scripts.convert_format "
        f"--dataset_dir={prepared} --out_file_format=array_record --out_path={prepared}/array_record`"
    )


def _not_prepared(name: str, data_dir: str) -> UserError:
    return UserError(
        f"data set {name} is not prepared in {data_dir}: set data.dir, or prepare it once with "
        f"`pip install tensorflow && tfds build {name} --file_format=array_record --data_dir={data_dir}`"
    )
