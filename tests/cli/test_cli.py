"""The commands as a user types them: help, results, and one clear line for a mistake."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from commands import call
from paths import ROOT
from PIL import Image

from vit_jax.cli import diff, evaluate, info, predict

COMMANDS = (
    "train.py",
    *(
        f"-m vit_jax.cli.{name}"
        for name in (
            "predict",
            "evaluate",
            "attention",
            "embed",
            "probe",
            "convert",
            "export",
            "info",
            "diff",
        )
    ),
)
pytestmark = pytest.mark.usefixtures("optax_dtypes")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("L", (20, 10), 90).save(path)
    return path


def python(*arguments):
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command):
    result = python(*command.split(), "--help")
    assert result.returncode == 0
    assert "examples:" in result.stdout
    assert command.split()[-1] in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--workdir", "argument --workdir: expected one argument"),
        ("--workdir=", "a path on the command line is empty"),
        ("--config_change=maybe --workdir=x", "invalid choice: 'maybe'"),
        ("--plan --sweep config.seed=1,2", "--plan describes one run"),
        ("--workdir=x --sweep_index 0", "--sweep_index requires --sweep"),
        ("--workdir=x --coordinator here --process_id 0 --processes 2", "--coordinator=here has no port"),
        ("--workdir=x --json", "require --plan"),
        ("--plan --device_memory_gib nan", "--device_memory_gib=nan must be above 0"),
    ],
)
def test_arguments_that_mean_nothing_are_one_line(arguments, message):
    result = python("train.py", "--config", "configs/quickstart.py", *arguments.split())
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_importing_is_light():
    heavy = "[m for m in ('tensorflow', 'torch', 'orbax', 'sklearn', 'matplotlib') if m in sys.modules]"
    result = python("-c", f"import sys, vit_jax; print({heavy})")
    assert result.stdout.strip() == "[]"


def test_training_imports_neither_tensorflow_nor_torch():
    heavy = "[m for m in ('tensorflow', 'torch') if m in sys.modules]"
    code = f"import sys, vit_jax.run.loop, vit_jax.loaded, tensorflow_datasets; print({heavy})"
    assert python("-c", code).stdout.strip() == "[]"


def test_predict_names_classes(monkeypatch, capsys, workdir, image, tmp_path):
    out_file = tmp_path / "sheet.png"
    code, out, _ = call(monkeypatch, capsys, predict, workdir, image, "--top", 2, "--out", out_file)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == str(image)
    assert len(lines) == 3
    assert lines[1].split()[1] in "0123456789"
    with Image.open(out_file) as sheet:
        assert sheet.height > 100


def test_predict_prints_json(monkeypatch, capsys, workdir, image):
    code, out, _ = call(monkeypatch, capsys, predict, workdir, image, image, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["path"] for row in rows] == [str(image)] * 2
    assert len(rows[0]["predictions"]) == 5
    assert set(rows[0]["predictions"][0]) == {"class", "index", "confidence"}


@pytest.mark.parametrize("batch_size", [7, 128, 400])
def test_evaluate_counts_each_example_once(monkeypatch, capsys, workdir, batch_size):
    code, out, _ = call(monkeypatch, capsys, evaluate, workdir, "--json", "--batch_size", batch_size)
    metrics = json.loads(out)
    assert code == 0
    assert metrics["examples"] == 359
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["top1"] == pytest.approx(last["eval/top1"])
    assert metrics["loss"] == pytest.approx(last["eval/loss"], rel=1e-5)  # sums in another order


def test_a_run_that_was_killed_while_it_wrote_is_shown_and_compared(monkeypatch, capsys, workdir, tmp_path):
    cut = shutil.copytree(workdir, tmp_path / "cut")
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "tra')
    shown = [call(monkeypatch, capsys, info, run, "--json") for run in (workdir, cut)]
    whole, other = (json.loads(out)["result"] for _, out, _ in shown)
    assert whole == other
    assert whole["step"] == 20
    code, out, _ = call(monkeypatch, capsys, diff, workdir, cut)
    assert (code, "the same to the last digit" in out) == (0, True)


def test_mistakes_are_one_line_and_exit_code_2(monkeypatch, capsys, workdir, image, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("not an image")
    cases = [
        (predict, (tmp_path / "nothing", image), "is no run directory, file or published checkpoint"),
        (predict, (workdir, text), f"{text} is not a readable image"),
        (predict, (workdir, tmp_path / "no.png"), "cannot read"),
        (predict, (workdir, image, "--top", 0), "--top=0 must be at least 1"),
        (
            predict,
            (workdir, image, "--out", tmp_path / "no" / "x.png"),
            f"no/x.png: there is no folder {tmp_path}/no",
        ),
        (
            predict,
            (workdir, image, "--out", "x.txt"),
            "cannot write x.txt: want a name that ends in .png, .jpg",
        ),
        (evaluate, (workdir, "--save", "x.npy"), "cannot write x.npy: want a name that ends in .npz"),
        (evaluate, (workdir, "--data.nam=x"), "did you mean data.name?"),
        (evaluate, (workdir, "--batch_size", 0), "--batch_size=0 must be at least 1"),
        (evaluate, (workdir, "--data.name=no_such_set"), "is not prepared in"),
    ]
    for command, arguments, message in cases:
        code, _, err = call(monkeypatch, capsys, command, *arguments)
        assert code == 2
        assert [line for line in err if not line.startswith(("loaded ", "  "))] == err[-1:]
        assert message in err[-1]
