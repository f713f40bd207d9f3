"""The data command shows, counts and measures, and says in one line what is wrong."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax.cli import data as command
from vit_jax.cli.common import run_command

CONFIG = """
from vit_jax.config import default

def get_config(arg=""):
    c = default()
    c.model.update(image_size=8, patch_size=4)
    c.train.update(steps=10, batch_size=16)
    c.data.update(name="digits", channels=1, threads=1)
    return c
"""


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    (tmp_path / "small.py").write_text(CONFIG)
    return str(tmp_path / "small.py")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["data", *arguments])
    return run_command(command.main)


def test_json_counts_every_class_and_measures(
    config_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, config_file, "--json", "--seconds=0.01") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["examples"] == 1438
    assert sum(report["class_counts"].values()) == 1438
    assert report["sizes"]["most_common_hw"] == [8, 8]
    assert report["images_per_s"] > 0


def test_the_sheet_shows_each_example_as_evaluated_and_as_trained_on(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "batch.png"
    arguments = ("--examples=3", "--seconds=0", "--config.data.augment=pad", "--split=eval", f"--out={out}")
    assert call(monkeypatch, config_file, *arguments) == 0
    text = capsys.readouterr().out
    assert "eval: 359 examples, 10 classes" in text
    assert f"sheet: {out}" in text
    image = Image.open(out)
    assert image.size == ((8 * 14 + 2) * 5, (8 * 14 + 14) * 3)
    assert len(np.unique(np.asarray(image))) > 10


def test_broken_files_are_listed_by_name(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    for i in range(30):
        path = folder / "train" / f"class_{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9 + i, 7)).save(path)
    (folder / "train" / "class_0" / "0.png").write_bytes(b"")
    options = (
        "--config.data.name=folder",
        f"--config.data.dir={folder}",
        "--seconds=0",
        f"--out={tmp_path}/a.png",
    )
    assert call(monkeypatch, config_file, *options) == 0
    text = capsys.readouterr().out
    assert "7x10 to 7x38" in text
    assert "0.png is empty" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.py",), "no config file at none.py"),
        (("FILE", "--config.data.thread=2"), "did you mean"),
        (("FILE", "--data.threads=2"), "unknown argument --data.threads=2"),
        (("FILE", "--config.data.name=folder", "--config.data.dir=none"), "data.dir=none is not a folder"),
        (("FILE", "--out=a.png", "--examples=-1"), "--examples=-1 must be at least 1"),
        (("FILE", "--out=none/batch.png"), "cannot write none/batch.png: there is no folder none"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    config_file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments,
    message: str,
) -> None:
    assert call(monkeypatch, *(config_file if a == "FILE" else a for a in arguments)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
