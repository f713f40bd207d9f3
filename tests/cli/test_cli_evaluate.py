"""The evaluate and predict commands: what they print, save and compare."""

import json
import sys

import numpy as np
import pytest
from commands import call
from PIL import Image

from vit_jax.cli import evaluate, predict

pytestmark = pytest.mark.usefixtures("optax_dtypes")


def test_evaluate_saves_compares_and_draws(monkeypatch, capsys, workdir, tmp_path):
    saved, picture = tmp_path / "p.npz", tmp_path / "c.png"
    code, out, _ = call(
        monkeypatch, capsys, evaluate, workdir, "--save", saved, "--confusion", picture, "--json"
    )
    facts = json.loads(out)
    assert code == 0
    assert sum(row["examples"] for row in facts["classes"]) == facts["examples"] == 359
    low, high = facts["top1_interval"]
    assert low <= facts["top1"] <= high
    assert 0 <= facts["ece"] <= 1
    with np.load(saved) as file:
        assert float((file["rank"] < 1).mean()) == facts["top1"]
    with Image.open(picture) as drawn:
        assert drawn.width > 300
    for other in (saved, workdir):
        code, out, _ = call(monkeypatch, capsys, evaluate, workdir, "--compare", other, "--table")
        assert code == 0
        assert "p = 1 (McNemar)" in out
        assert out.count("%  of") == 10


def test_data_of_other_classes_is_refused_and_of_other_names_told(monkeypatch, capsys, workdir, tmp_path):
    def evaluated(names):
        for name in names:
            (tmp_path / name).mkdir(exist_ok=True)
            for i in range(30):
                Image.new("L", (8, 8), 90).save(tmp_path / name / f"{i}.png")
        data = ("--data.name=folder", f"--data.dir={tmp_path}")
        code, _, err = call(monkeypatch, capsys, evaluate, workdir, *data)
        return code, err[-1]

    code, told = evaluated(["ape", "bee"])
    assert code == 2
    assert "the data has 2 classes (ape, bee, ...), the model 10 (0, 1, 2, ...)" in told
    code, told = evaluated(["ape", "bee", *"01234567"])
    assert code == 0
    assert told == (
        "note: 2 of 10 classes have other names in the data than in the model, the first 'ape' and '8'"
    )


def test_calibration_is_used_by_predict(monkeypatch, capsys, workdir, tmp_path):
    Image.new("L", (8, 8), 90).save(tmp_path / "x.png")
    code, _, err = call(monkeypatch, capsys, predict, workdir, tmp_path / "x.png", "--coverage", 0.9)
    assert code == 2
    assert "has no calibration" in err[-1]
    assert call(monkeypatch, capsys, evaluate, workdir, "--calibrate")[0] == 0
    code, out, _ = call(
        monkeypatch, capsys, predict, workdir, tmp_path / "x.png", "--coverage", 0.9, "--json"
    )
    row = json.loads(out)
    assert code == 0
    assert row["set"]
    assert set(row["set"]) <= set("0123456789")


def test_predict_takes_folders_globs_and_stdin(monkeypatch, capsys, workdir, tmp_path):
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.new("L", (8, 8), 80 * i).save(folder / f"{i}.png")
    for noise in ("notes.txt", "._0.png"):
        (folder / noise).write_text("not an image")
    monkeypatch.setattr(predict, "BATCH", 2)
    paths = lambda *a: [
        json.loads(x)["path"] for x in call(monkeypatch, capsys, predict, workdir, *a)[1].splitlines()
    ]
    wanted = [str(folder / f"{i}.png") for i in range(3)]
    assert paths(tmp_path / "photos", "--json") == wanted
    _, _, err = call(monkeypatch, capsys, predict, workdir, tmp_path / "photos")
    assert f"note: {tmp_path}/photos: left out files that are no images: 1, hidden files: 1" in err
    assert paths(tmp_path / "photos" / "*" / "[01].png", "--json") == wanted[:2]
    monkeypatch.setattr(sys, "stdin", iter([f"{wanted[2]}\n", "\n"]))
    assert paths("-", "--json") == wanted[2:]
    code, _, err = call(monkeypatch, capsys, predict, workdir, tmp_path / "photos" / "*.gif")
    assert code == 2
    assert "matches no file" in err[0]
