"""`python -m vit_jax.cli.probe`: one table for a run or a file, its cache, mistakes in one line."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from commands import call
from PIL import Image
from weight_files import nest, random_params

import vit_jax
from vit_jax.cli import probe
from vit_jax.data import sources
from vit_jax.sections import Model
from vit_jax.weights.save import write

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")


def test_the_command_prints_one_table(monkeypatch, capsys, workdir, tmp_path):
    table = tmp_path / "probe.csv"
    few = ("--cache", tmp_path / "cache", "--epochs", 3, "--lr", "0.1,0.01", "--weight_decay", "0,1e-4")
    code, out, err = call(monkeypatch, capsys, probe, workdir, *few, "--json", "--out", table)
    assert code == 0
    assert sum("examples, made in" in line for line in err) == 2
    facts = json.loads(out)
    assert facts["examples"] == {"train": 1294, "held_out": 144, "eval": 359}
    assert facts["linear"]["heads"] == 16
    assert [c["features"] for c in facts["linear"]["columns"]] == [
        *("block_0/token", "block_1/token", "block_0/gap", "block_1/gap")
    ]
    # Even an untrained ViT tells digits apart; this one has seen them.
    assert facts["linear"]["top1"] > 0.5
    assert facts["few_shot"][3]["top1"] > facts["few_shot"][0]["top1"] > 0.1
    assert all(row["top1"] > 0.5 for row in facts["knn"])
    rows = list(csv.reader(table.read_text().splitlines()))
    assert len(rows) == 1 + 6 + 4 + 4
    assert sum(bool(row[4]) for row in rows if row[0] == "linear") == 1

    markdown = tmp_path / "probe.md"
    code, out, err = call(monkeypatch, capsys, probe, workdir, *few, "--out", markdown)
    assert code == 0
    assert sum("examples, read from" in line for line in err) == 2
    lines = out.splitlines()
    assert all(line.startswith(row[0]) for line, row in zip(lines, rows, strict=False))
    assert f"{facts['linear']['top1']:.2%}" in out
    assert max(map(len, lines)) < 120
    assert markdown.read_text().count("\n") == len(rows) + 1


def test_the_head_of_a_probe_is_written_and_classifies(monkeypatch, capsys, workdir, tmp_path):
    file = tmp_path / "headed.npz"
    few = (
        "--cache",
        tmp_path,
        "--pooling",
        "token",
        "--lr",
        0.1,
        "--weight_decay",
        0,
        "--layers",
        1,
        "--json",
    )
    code, out, err = call(monkeypatch, capsys, probe, workdir, "--head", file, *few)
    assert code == 0, err
    facts = json.loads(out)
    assert facts["head"]["features"] == facts["features"] == "block_1/token"
    run, written = vit_jax.load(workdir), vit_jax.load(file)
    digits = sources.digits(train=False)
    images, labels = zip(*(digits.get(i) for i in range(digits.size)), strict=True)
    head = written.params["head"]
    logits = run.features(images) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    probabilities = written.probabilities(images)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-6)  # float32 in another order
    # Chosen and trained on 1,294 of its 1,438 examples, the head of the table is much alike.
    top1 = (probabilities.argmax(axis=1) == labels).mean()
    assert abs(top1 - facts["linear"]["top1"]) < 0.05
    for name in run.params.keys() - {"head"}:
        jax.tree.map(np.testing.assert_array_equal, run.params[name], written.params[name])


def test_a_file_without_a_head_is_probed_on_other_data(monkeypatch, capsys, tmp_path):
    rng = np.random.default_rng(0)
    for split, n in (("train", 30), ("val", 6)):
        for name in ("dark", "light"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(n // 2):
                pixels = rng.integers(0, 100, (20, 20, 3)) + (155 if name == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    sizes = {"image_size": 16, "patch_size": 8, "width": 12, "depth": 2, "heads": 3, "mlp_width": 8}
    cfg = Model(**sizes, classes=0, class_token=False, pooling="map")
    params = nest(
        {k: v for k, v in random_params(dataclasses.replace(cfg, classes=1)).items() if "head" not in k}
    )
    write(tmp_path / "w.npz", params, cfg, dialect="big_vision")
    data = ("--data.name=folder", f"--data.dir={tmp_path / 'photos'}", "--cache", tmp_path / "cache")
    few = ("--neighbours", 3, "--shots", 2, "--lr", 0.1, "--weight_decay", 0, "--layers", 1, "--json")
    code, out, err = call(monkeypatch, capsys, probe, tmp_path / "w.npz", *data, *few)
    assert code == 0, err
    facts = json.loads(out)
    assert facts["features"] == "block_1/model"
    assert facts["linear"]["top1"] == facts["knn"][0]["top1"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", 0), "--epochs=0 must be at least 1"),
        (("--batch_size", 0), "--batch_size=0 must be at least 1"),
        (("--seed", -1), "--seed=-1 must be at least 0"),
        (("--shots", "1,x"), "--shots=1,x is not a list of numbers: write --shots 1,2,3"),
        (("--neighbours", "0"), "--neighbours=0: every number must be at least 1"),
        (("--lr", "nan"), "--lr=nan: every number must be at least 0, and finite"),
        (("--layers", 3), "--layers=3 is not between 1 and the 2 blocks of the model"),
        (("--pooling", "max"), "--pooling=max is not one of token, gap, model"),
        (("--neighbours", 2000), "the train split has 1438 examples: want at least 2000"),
        (("--head", "head.txt"), "head.txt ends in neither .npz nor .safetensors"),
        (("--head", "head.npz", "--dialect", "x"), "dialect='x' cannot be written: use "),
        (
            ("--head", "head.npz", "--pooling", "gap"),
            "--head needs a probe of block_1/token, which the model's",
        ),
        (
            ("--head", "head", "--dialect", "huggingface", "--data.resize=native"),
            "a folder of transformers cannot state images of their own aspect: write a .npz",
        ),
        (("--out", "table.txt"), "cannot write table.txt: want a name that ends in .md, .csv"),
        (("--data.nam=x",), "did you mean data.name?"),
        (("--data.name=no_such_set",), "is not prepared in"),
        (("--data.channels=3",), "data.channels=3 is not the 1 that the model takes"),
        (("--data.name=folder", "--data.dir=no_such_folder"), "data.dir=no_such_folder is not a folder"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, workdir, tmp_path, arguments, message):
    code, out, err = call(monkeypatch, capsys, probe, workdir, "--cache", tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert message in err[-1]
    assert [line for line in err if not line.startswith(("loaded ", "  "))] == err[-1:]


def test_places_that_are_none_are_one_line(monkeypatch, capsys, workdir, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    code, _, err = call(monkeypatch, capsys, probe, tmp_path / "nothing")
    assert (code, len(err)) == (2, 1)
    assert "is no run directory, file or published checkpoint" in err[0]
    code, _, err = call(monkeypatch, capsys, probe, workdir, "--cache", file / "below")
    assert code == 2
    assert "cannot write --cache" in err[-1]
    code, _, err = call(monkeypatch, capsys, probe, workdir, "--out", tmp_path / "no" / "x.md")
    assert (code, len(err)) == (2, 1)
    assert f"x.md: there is no folder {tmp_path / 'no'}" in err[0]
