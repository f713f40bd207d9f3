"""What evaluate and probe tell of single examples: the errors, a row each, and labels that look wrong."""

import csv
import json
import re

import numpy as np
import pytest
from commands import call
from PIL import Image

from vit_jax.analysis import predictions
from vit_jax.cli import evaluate, mistakes, probe
from vit_jax.data import sources

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")
CLASSES = ("0", "1", "6")
SWAPPED = 4  # training images of 0 that lie in the folder of 1
BROKEN = 5  # of the evaluation files of 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as files, of which some training images are misfiled and one evaluation file is no image."""
    root = tmp_path_factory.mktemp("digits")
    misfiled = []
    for split, train in (("train", True), ("val", False)):
        source = sources.digits(train=train)
        for i in range(source.size):
            image, label = source.get(i)
            if str(label) in CLASSES:
                wrong = train and label == 0 and len(misfiled) < SWAPPED
                path = root / split / ("1" if wrong else str(label)) / f"{i:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[..., 0]).save(path)
                if wrong:
                    misfiled.append(str(path))
    broken = sorted((root / "val" / "0").iterdir())[BROKEN]
    broken.write_bytes(b"no image")
    return root, misfiled


def data_of(folder):
    return ("--data.name=folder", f"--data.dir={folder[0]}", "--data.on_error=skip")


def test_every_example_has_a_row_with_its_file_though_one_cannot_be_read(
    monkeypatch, capsys, workdir, folder, tmp_path
):
    saved, table, sheet = (tmp_path / name for name in ("p.npz", "p.csv", "w.png"))
    out_to = ("--save", saved, "--csv", table, "--worst", sheet, "--json")
    code, out, err = call(
        monkeypatch, capsys, evaluate, workdir, *data_of(folder), "--batch_size", 8, *out_to
    )
    assert code == 0, err
    facts, found = json.loads(out), predictions.load(str(saved))
    files = sorted(folder[0].glob("val/*/*.png"))
    assert found.place.tolist() == [i for i in range(len(files)) if i != BROKEN]
    assert found.path.tolist() == [str(files[i]) for i in found.place]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == facts["examples"] == len(files) - 1
    for i, row in enumerate(rows):
        assert row["path"] == found.path[i]
        assert row["label"] == row["path"].split("/")[-2] == str(found.label[i])  # names are the digits
        assert row["predicted"] == str(found.predicted[i])
        assert float(row["confidence"]) == found.confidence[i]
        assert float(row["loss"]) == found.loss[i]
    errors = [row for row in rows if row["label"] != row["predicted"]]
    assert errors
    wanted = sorted(errors, key=lambda row: -float(row["confidence"]))
    assert [e["path"] for e in facts["errors"]] == [row["path"] for row in wanted[: mistakes.MOST_PANELS]]
    with Image.open(sheet) as drawn:
        assert drawn.width > 300


def test_examples_without_files_are_numbered(monkeypatch, capsys, workdir, tmp_path):
    table = tmp_path / "p.csv"
    assert call(monkeypatch, capsys, evaluate, workdir, "--csv", table)[0] == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["path"] for row in rows] == [str(i) for i in range(359)]
    code, _, err = call(monkeypatch, capsys, evaluate, workdir, "--csv", tmp_path / "p.txt")
    assert code == 2
    assert "p.txt: want a name that ends in .csv" in err[-1]


def of(label, predicted, confidence):
    label, predicted = np.int32(label), np.int32(predicted)
    values = np.float32(confidence)
    rank = np.int32(label != predicted)
    return predictions.Predictions(label, predicted, values, rank, values, None, 0.0, np.arange(len(label)))


def test_the_worst_are_the_most_confident_errors_of_any_channels(tmp_path, capsys):
    found = of([0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0.6, 0.99, 0.9, 0.5, 0.6])
    assert mistakes.worst(found).tolist() == [2, 0, 4]
    for channels in (1, 2, 3, 5):
        images = np.zeros((5, 8, 8, channels), np.uint8)
        source = sources.arrays(images, found.label, ("cat", "dog"))
        sheet = tmp_path / f"{channels}.png"
        told = mistakes.draw_worst(sheet, found, ["cat", "dog"], source)
        assert [(r["path"], r["label"], r["predicted"]) for r in told][:2] == [
            *(("2", "dog", "cat"), ("0", "cat", "dog"))
        ]
        assert sheet.stat().st_size
    right = of([0, 1], [0, 1], [0.9, 0.9])
    assert mistakes.draw_worst(tmp_path / "none.png", right, ["cat", "dog"], source) == []
    assert "no example is predicted wrongly" in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(("classes", "numbered"), [(30, True), (31, False)])
def test_the_confusion_has_its_counts_in_the_cells_of_up_to_thirty_classes(tmp_path, classes, numbered):
    names = [f"class {i}" for i in range(classes)]
    found = of([0, 0, 0, 1], [0, 0, 2, 1], [0.5] * 4)
    path = tmp_path / "c.svg"
    mistakes.draw_confusion(found, names, path)
    texts = re.findall(r"<!-- (.*?) -->", path.read_text())
    axis = {f"{x:.1f}" for x in np.arange(0, 1.1, 0.2)}
    assert ("class 29" in texts) == numbered
    assert [t for t in texts if t in ("1", "2")] == (["2", "1", "1"] if numbered else [])
    assert axis & set(texts)


def test_misfiled_images_are_among_the_first_suspects(monkeypatch, capsys, workdir, folder, tmp_path):
    few = ("--cache", tmp_path, "--neighbours", 3, "--shots", 5, "--lr", 0.1, "--weight_decay", 1e-4)
    ask = (probe, workdir, *data_of(folder), *few, "--suspects", 2 * SWAPPED)
    code, out, err = call(monkeypatch, capsys, *ask, "--json")
    assert code == 0, err
    rows = json.loads(out)["suspects"]
    assert {row["path"] for row in rows} > set(folder[1])  # of 539
    assert len(rows) == 2 * SWAPPED
    told = {(row["label"], row["predicted"]) for row in rows if row["path"] in folder[1]}
    assert told == {("1", "0")}
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    code, out, _ = call(monkeypatch, capsys, *ask)
    *_, head = out.splitlines()[: -2 * SWAPPED]
    lines = out.splitlines()[-2 * SWAPPED :]
    assert head == "suspected wrong labels of the train split, by held-out loss:"
    assert [line.split()[-1] for line in lines] == [row["path"] for row in rows]
    code, _, err = call(monkeypatch, capsys, probe, workdir, "--suspects", -1)
    assert (code, err[-1]) == (2, "error: --suspects=-1 must be at least 0")
