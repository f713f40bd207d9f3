"""The step benchmark runs and prints what it promises. No figure is judged: timing is not a test."""

import importlib.util
import json
import math
import sys

import pytest
from paths import ROOT

from vit_jax.models import variants
from vit_jax.sections import Model

FILE = ROOT / "benchmarks" / "step.py"
SMALL = "--sizes Ti/16 --image-size 32 --depth 1 --batch 2 --rounds 2 --dtypes float32"


@pytest.fixture
def step(monkeypatch, optax_dtypes):
    """The benchmark's module, with a matrix product that takes no time."""
    spec = importlib.util.spec_from_file_location("benchmark_step", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PRODUCT_SIDE", 64)
    return module


def test_the_step_benchmark_prints_a_table(step, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["step.py", *SMALL.split(), "--modes", "inference,sgd"])
    step.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("| name | images_s |")
    assert [line.split("|")[1].strip() for line in lines[3:]] == [
        "ours Ti/16 float32 inference",
        "ours Ti/16 float32 sgd",
    ]


def test_the_step_benchmark_prints_json(step, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["step.py", *SMALL.split(), "--modes", "inference", "--json"])
    step.main()
    report = json.loads(capsys.readouterr().out)
    assert report["product_gflop_s"]["float32"] > 0
    (row,) = report["rows"]
    assert row["images_s"] > 0
    assert row["mfu"] > 0
    assert row["peak_mib"] > 0


def test_the_step_benchmark_scans_train_steps_alone(step, monkeypatch):
    monkeypatch.setattr("sys.argv", ["step.py", *SMALL.split(), "--modes", "inference,sgd", "--scan"])
    inference, train = step.works(step._arguments())
    assert not inference.scan
    assert train.scan
    step.ours(train).turn()


def test_the_products_of_a_model_are_those_of_the_literature(step):
    # Giga multiply-accumulates as published for timm's models at 224 pixels, attention's products included.
    for size, wanted in {"Ti/16": 1.26, "S/16": 4.6, "B/16": 17.6}.items():
        got = step.contenders.forward_flops(Model(**variants.model(size), classes=1000)) / 2e9
        assert math.isclose(got, wanted, rel_tol=0.01)
