"""The same examples from a folder, tables of paths, and Hugging Face's files; and what is refused."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import prepared
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import encode
from PIL import Image

from vit_jax import config
from vit_jax.data import cache, loader, sources
from vit_jax.data.decode import BrokenExample
from vit_jax.errors import UserError
from vit_jax.sections import Data

NAMES = ("ape", "bee", "cow")
COUNT = 24


def image(i: int) -> bytes:
    return encode(Image.fromarray(np.random.default_rng(i).integers(0, 256, (6, 5, 3), dtype=np.uint8)))


def label(i: int) -> str:
    return NAMES[i % 3]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """COUNT images in a folder a class, and nothing else."""
    for i in range(COUNT):
        path = tmp_path / "pictures" / label(i) / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i))
    return tmp_path / "pictures"


def rows_of(pictures: Path) -> list[tuple[str, str]]:
    return [(p.relative_to(pictures).as_posix(), p.parent.name) for p in sorted(pictures.rglob("*.png"))]


def write_csv(path: Path, header: list[str], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def opened(name: str, place: Path, *, train: bool, **fields):
    cfg = config.override_data(
        Data(), [f"--data.{k}={v}" for k, v in {"name": name, "dir": place, **fields}.items()]
    )
    return sources.open_split(cfg, train=train)


def held(source) -> set[tuple[bytes, tuple[str, ...]]]:
    """All of a source's examples: pixels, and the names of their classes."""
    found = set()
    for i in range(source.size):
        picture, given = source.get(i)
        of = np.flatnonzero(given) if source.multi_label else [given]
        np.testing.assert_array_equal(given, source.labels()[i])
        found.add((picture.pixels(3).tobytes(), tuple(source.class_names[int(c)] for c in of)))
    assert len(found) == source.size
    return found


def everything(source_of) -> tuple[set, set, tuple[str, ...]]:
    train, test = source_of(train=True), source_of(train=False)
    assert train.class_names == test.class_names
    assert not held(train) & held(test)
    again = pickle.loads(pickle.dumps(train))
    assert held(again) == held(train)
    return held(train), held(test), train.class_names


def test_a_table_beside_the_images_has_the_examples_of_the_folder(pictures: Path) -> None:
    wanted = everything(lambda train: opened("folder", pictures, train=train))
    assert wanted[2] == NAMES
    rows = rows_of(pictures)
    for header in (["path", "label"], ["file_name", "label"]):
        write_csv(pictures / "metadata.csv", header, rows)
        assert everything(lambda train: opened("table", pictures, train=train)) == wanted
        assert everything(lambda train: opened("table", pictures / "metadata.csv", train=train)) == wanted
    (pictures / "metadata.csv").unlink()
    columns = {"note": ["x"] * COUNT, "path": [r[0] for r in rows], "label": [r[1] for r in rows]}
    pq.write_table(pa.table(columns), pictures / "labels.parquet")
    assert everything(lambda train: opened("table", pictures, train=train)) == wanted


def test_splits_of_every_kind_have_the_same_examples(pictures: Path, tmp_path: Path) -> None:
    rows = rows_of(pictures)
    parts = {"train": rows[::2], "val": rows[1::2]}
    folder, tables, meta, arrow, hub = (tmp_path / n for n in ("folder", "tables", "meta", "arrow", "hub"))
    for split, part in parts.items():
        (meta / split).mkdir(parents=True)
        tables.mkdir(exist_ok=True)
        write_csv(tables / f"{split}.csv", ["label", "path"], [(c, str(pictures / p)) for p, c in part])
        for path, name in part:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            (folder / split / path).write_bytes((pictures / path).read_bytes())
            (meta / split / Path(path).name).write_bytes((pictures / path).read_bytes())
        write_csv(meta / split / "metadata.csv", ["file_name", "label"], [(Path(p).name, c) for p, c in part])
        images = [(pictures / p).read_bytes() for p, _ in part]
        numbers = [NAMES.index(c) for _, c in part]
        prepared.hub_parquet(hub, split, images, numbers, NAMES)
        prepared.saved_to_disk(arrow / split, images, numbers, NAMES, shards=2)
    (arrow / "dataset_dict.json").write_text(json.dumps({"splits": [*parts]}))
    wanted = everything(lambda train: opened("folder", folder, train=train))
    for kind, place in {"table": tables, "arrow": arrow, "parquet": hub}.items():
        assert everything(lambda train, k=kind, p=place: opened(k, p, train=train)) == wanted, kind
    assert everything(lambda train: opened("table", meta, train=train)) == wanted
    for split in parts:
        table = pq.read_table(hub / "data" / f"{split}-00000-of-00001.parquet")
        words = pa.table({"image": table["image"], "label": [NAMES[i] for i in table["label"].to_pylist()]})
        pq.write_table(words, hub / "data" / f"{split}-00000-of-00001.parquet")
    assert everything(lambda train: opened("parquet", hub, train=train)) == wanted


def test_a_saved_data_set_without_splits_is_split_by_rows(tmp_path: Path) -> None:
    images, words = [image(i) for i in range(COUNT)], [label(i) for i in range(COUNT)]
    prepared.saved_to_disk(tmp_path / "one", images, words)
    train, test, names = everything(lambda train: opened("arrow", tmp_path / "one", train=train))
    assert (len(train), len(test), names) == (21, 3, NAMES)
    source = opened("arrow", tmp_path / "one", train=True)
    assert {Path(f.path).name for f in source.files()} == {"data-00000-of-00001.arrow"}
    prepared.saved_to_disk(tmp_path / "bare", [*images[:2], None], words[:3])
    bare = opened("arrow", tmp_path / "bare", train=True)
    with pytest.raises(BrokenExample, match=r"bare row 2 has no image"):
        bare.get(2)


def test_a_process_reads_arrow_files_too(tmp_path: Path) -> None:
    prepared.saved_to_disk(tmp_path / "one", [image(i) for i in range(COUNT)], [i % 3 for i in range(COUNT)])
    source = opened("arrow", tmp_path / "one", train=True)
    made = []
    for workers in (0, 1):
        cfg = Data(name="arrow", dir="x", workers=workers, threads=2)
        batches = loader.EvalBatches(source, cfg, (6, 5), 5, range(5))
        made.append([[x.tobytes() for x in batch] for batch in loader.iterate(batches, cfg)])
    assert made[0] == made[1]


def test_numbers_are_classes_in_their_order(pictures: Path) -> None:
    rows = rows_of(pictures)
    write_csv(
        pictures / "labels.csv", ["path", "label"], [(p, str(10 - i % 3)) for i, (p, _) in enumerate(rows)]
    )
    assert opened("table", pictures, train=True).class_names == ("8", "9", "10")
    # What pandas makes of whole numbers in a column with gaps.
    write_csv(
        pictures / "labels.csv", ["path", "label"], [(p, f"{i % 3}.0") for i, (p, _) in enumerate(rows)]
    )
    assert opened("table", pictures, train=True).class_names == ("0", "1", "2")


# --- several labels per image ---


def test_several_labels_are_the_same_in_every_form(pictures: Path, tmp_path: Path) -> None:
    rows = [p for p, _ in rows_of(pictures)]
    several = [[NAMES[c] for c in range(3) if (i >> c) & 1] for i in range(COUNT)]
    cells = [(p, *[*s, "", ""][:3]) for p, s in zip(rows, several, strict=True)]
    write_csv(pictures / "metadata.csv", ["path", "label", "label", "label"], cells)
    source_of = lambda train: opened("table", pictures, train=train)
    wanted = everything(source_of)
    train, test = (source_of(train=t) for t in (True, False))
    assert train.multi_label
    assert train.labels().dtype == np.uint8
    assert train.labels().shape == (train.size, 3)
    assert (train.size + test.size, test.labels().any(axis=0).all()) == (COUNT, True)
    assert train.note() == f"note: {pictures}/metadata.csv: 2 images have no label: they are of no class"
    all_of = lambda source_of: held(source_of(train=True)) | held(source_of(train=False))
    (pictures / "metadata.csv").unlink()
    pq.write_table(pa.table({"path": rows, "labels": several}), pictures / "labels.parquet")
    assert everything(source_of) == wanted
    images = [(pictures / p).read_bytes() for p in rows]
    numbers = [[NAMES.index(name) for name in names] for names in several]
    prepared.saved_to_disk(tmp_path / "arrow", images, numbers, NAMES)
    assert all_of(lambda train: opened("arrow", tmp_path / "arrow", train=train)) == wanted[0] | wanted[1]
    noted = sources.open_split(Data(name="arrow", dir=str(tmp_path / "arrow")), train=True).note()
    assert noted == f"note: {tmp_path}/arrow: 2 images have no label: they are of no class"
    for split, part in (("train", slice(0, 20)), ("test", slice(20, None))):
        prepared.hub_parquet(tmp_path / "hub", split, images[part], numbers[part], NAMES)
    assert all_of(lambda train: opened("parquet", tmp_path / "hub", train=train)) == wanted[0] | wanted[1]
    assert (
        opened("parquet", tmp_path / "hub", train=True)
        .note()
        .endswith(" train: 3 images have no label: they are of no class")
    )


def test_a_batch_of_several_labels_has_a_row_of_classes_an_example() -> None:
    given = np.eye(3, dtype=np.int64)[np.arange(5) % 3]
    source = sources.arrays(np.zeros((5, 4, 4), np.uint8), given, NAMES)
    for kept in (source, cache.keep(source, Data(channels=1, cache_gib=1e-3), (4, 4), train=False)):
        batches = loader.EvalBatches(kept, Data(channels=1), (4, 4), 4, range(4))
        for _ in range(2):  # the second time from the cache
            np.testing.assert_array_equal(batches[1].label, [given[4], [0] * 3, [0] * 3, [0] * 3])
        assert batches[1].label.dtype == np.uint8
        np.testing.assert_array_equal(batches[1].weight, [1, 0, 0, 0])
    with pytest.raises(
        UserError, match=r"labels \[5, 3\] from 0 to 2 for 3 classes: want integers \[n\], or 0"
    ):
        sources.arrays(np.zeros((5, 4, 4), np.uint8), 2 * given, NAMES)
    with pytest.raises(UserError, match=r"float64 labels: .*regression"):
        sources.arrays(np.zeros((5, 4, 4), np.uint8), np.linspace(0, 1, 5), NAMES)


# --- what is refused, in one line ---

LINES = ["path,label", *(f"{label(i)}/{i:02}.png,{label(i)}" for i in range(COUNT))]
BAD_CSV = {
    "header missing": (LINES[1:], r"begins with the example ape/00.png,ape, without a line of column names"),
    "no path column": (["name,label", *LINES[1:]], r"has the columns name, label: want the columns path"),
    "no label column": (["path,class", *LINES[1:]], r"has the columns path, class: want the columns path"),
    "semicolons": (
        [x.replace(",", ";") for x in LINES],
        r"has the columns path;label: want the columns path",
    ),
    "no rows": (LINES[:1], r"has no rows below its column names"),
    "nothing": ([], r"labels.csv is empty: want the columns path"),
    "missing file": (
        [*LINES, "ape/99.png,ape"],
        r"1 of 22 images are not there, the first \S+ape/99.png",
    ),
    "twice": (
        [*LINES, "./ape/00.png,bee"],
        r"has ape/00.png twice, in row 2 and row 26: give an image one row",
    ),
    "no label": ([*LINES[:-1], "cow/23.png,"], r"has no label in row 25: label it, or leave it out"),
    "no path": ([*LINES, ",ape"], r"has no path in row 26"),
    "cells": ([*LINES, "ape/03.png,ape,bee"], r"row 26 has 3 cells, the column names 2: want as many"),
    "types": (
        [*LINES, "x.png,7"],
        r"labels of different types, the number 7 \(row 26\) and the word ape \(row 2\)",
    ),
    "regression": (
        ["path,label", *(f"{label(i)}/{i:02}.png,{i / 4}" for i in range(COUNT))],
        r"has the label 0.25 \(row 3\): classes are words or whole .*\(regression\) is not done",
    ),
    "quotes": (["path,label", 'a.png,"ape'], r"labels.csv line 2 is not CSV: unexpected end of data"),
}


def refused(name: str, place: Path, message: str, *, train: bool = True, **fields) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(name, place, train=train, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", BAD_CSV)
def test_what_is_wrong_in_a_csv_is_one_line(pictures: Path, case: str) -> None:
    lines, message = BAD_CSV[case]
    (pictures / "labels.csv").write_text("".join(f"{line}\n" for line in lines))
    refused("table", pictures, message)


def test_a_path_from_the_root_is_the_same_image(pictures: Path) -> None:
    rows = [f"{pictures / line}" for line in LINES[1:]]
    (pictures / "labels.csv").write_text("\n".join([LINES[0], *rows[:6], *LINES[7:]]))
    assert opened("table", pictures, train=True).size == COUNT - 3
    (pictures / "labels.csv").write_text("\n".join([*LINES, rows[3]]))
    refused("table", pictures, r"has \S+ape/03.png twice, in row 5 and row 26: give an image one row")


def test_a_file_that_is_no_text_or_no_table_is_one_line(pictures: Path) -> None:
    refused(
        "table", pictures, "has no table of paths and labels: want train.csv, train/metadata.csv, metadata"
    )
    (pictures / "labels.csv").write_bytes("\n".join(LINES).replace("ape", "äpe").encode("latin-1"))
    refused("table", pictures, r"labels.csv is not UTF-8 text \(byte 11 is 0xe4\): save it as UTF-8")
    (pictures / "labels.csv").unlink()
    (pictures / "labels.parquet").write_text("\n".join(LINES))
    refused("table", pictures, "labels.parquet is not a parquet file")
    refused("table", pictures / "none.csv", "none.csv cannot be read: No such file")


def test_a_byte_order_mark_and_windows_lines_are_fine(pictures: Path) -> None:
    (pictures / "labels.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LINES).encode())
    assert opened("table", pictures, train=True).class_names == NAMES


def test_missing_files_may_be_skipped(pictures: Path) -> None:
    (pictures / "labels.csv").write_text("\n".join([*LINES, "ape/99.png,ape"]))
    source = opened("table", pictures, train=True, on_error="skip")
    with pytest.raises(BrokenExample, match=r"ape/99.png cannot be read: No such file"):
        source.get(source.size - 1)


def test_splits_that_do_not_fit_each_other_are_refused(pictures: Path) -> None:
    (pictures / "train.csv").write_text("\n".join(LINES[:-3]))
    refused(
        "table",
        pictures,
        "has no table validation.csv or validation/metadata.csv: set data.eval",
        train=False,
    )
    (pictures / "test.csv").write_text("path,label\ncow/23.png,dog\n")
    refused(
        "table", pictures, r"test.csv has labels that the training split lacks \(dog\): rename", train=False
    )
    (pictures / "test.csv").write_text("path,label,label\ncow/23.png,cow,ape\n")
    refused(
        "table", pictures, r"test.csv gives several labels per image, \S*train.csv one: want the", train=False
    )
    assert opened("table", pictures, train=True).size == COUNT - 3


COLUMNS = {"path": [f"{label(i)}/{i:02}.png" for i in range(COUNT)], "label": [i % 3 for i in range(COUNT)]}
BAD_PARQUET = {
    "no path": (
        {"image": [b""], "label": [1]},
        "want the columns path .*data.name=parquet reads images that are in",
    ),
    "no label": ({"path": ["x"], "class": [1]}, "has the columns path, class: want the columns path"),
    "regression": (
        COLUMNS | {"label": [i / 4 for i in range(COUNT)]},
        r"has the label 0.25 \(row 1\).*regression",
    ),
    "dates": (COLUMNS | {"label": pa.array(range(COUNT), pa.timestamp("s"))}, "has labels of type timestamp"),
    "paths": (COLUMNS | {"path": [*range(COUNT)]}, "has paths of type int64: want text"),
    "null": (COLUMNS | {"label": [None, *COLUMNS["label"][1:]]}, "has no label in row 0"),
}


@pytest.mark.parametrize("case", BAD_PARQUET)
def test_what_is_wrong_in_a_parquet_table_is_one_line(pictures: Path, case: str) -> None:
    columns, message = BAD_PARQUET[case]
    pq.write_table(pa.table(columns), pictures / "labels.parquet")
    refused("table", pictures, message)


def test_what_is_wrong_in_a_saved_data_set_is_one_line(tmp_path: Path) -> None:
    refused(
        "arrow", tmp_path, "has no dataset_dict.json or state.json: want a folder that save_to_disk wrote"
    )
    images = [image(0), image(1)]
    prepared.saved_to_disk(tmp_path / "few", images, NAMES[:2])
    refused("arrow", tmp_path / "few", "few has no rows for evaluation: give more", train=False)
    prepared.saved_to_disk(tmp_path / "a" / "train", images, [0, 1], NAMES)
    (tmp_path / "a" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    refused("arrow", tmp_path / "a", "has no split validation: it has train", train=False)
    prepared.saved_to_disk(tmp_path / "a" / "test", images, [0, -1], NAMES)
    (tmp_path / "a" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    refused(
        "arrow", tmp_path / "a", r"test has label -1 \(row 1\), of no class: give a labelled", train=False
    )
    prepared.saved_to_disk(tmp_path / "a" / "test", images, [0, 1], NAMES[::-1])
    refused("arrow", tmp_path / "a", "test names other classes than the training split", train=False)
    shard = tmp_path / "a" / "train" / "data-00000-of-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:100])
    refused("arrow", tmp_path / "a", "data-00000-of-00001.arrow cannot be read as an arrow file")
    shard.unlink()
    refused("arrow", tmp_path / "a", "train lacks 1 of its 1 arrow files: copy all")
    (tmp_path / "a" / "train" / "state.json").unlink()
    refused("arrow", tmp_path / "a", "train has no state.json: copy all of what save_to_disk wrote")
