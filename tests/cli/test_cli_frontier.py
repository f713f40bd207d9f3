"""`frontier`, and other patch sizes in `evaluate` and `convert`."""

import json

import jax
import numpy as np
import pytest
from commands import call

import vit_jax
from vit_jax import config
from vit_jax.cli import convert, evaluate
from vit_jax.cli import frontier as command
from vit_jax.weights.adapt import Wish
from vit_jax.weights.load import read

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")
COMMANDS = {"frontier": command, "evaluate": evaluate, "convert": convert}


@pytest.fixture
def run(monkeypatch, capsys):
    """The output of a command that succeeds, or the error of one that ends with another code."""

    def run(name, *arguments, code=0):
        got, out, err = call(monkeypatch, capsys, COMMANDS[name], *arguments)
        assert got == code, err
        return "\n".join(err) if code else out

    return run


@pytest.fixture(scope="module")
def flexible(tmp_path_factory):
    tree = config.default()
    tree.model.update(image_size=8, patch_size=4, width=16, depth=1, heads=2, mlp_width=32)
    tree.data.update(name="digits", channels=1, threads=0)
    tree.train.update(steps=4, batch_size=32, patch_sizes=(2, 4, 8))
    workdir = tmp_path_factory.mktemp("flexi") / "run"
    vit_jax.train(config.parse(tree), workdir)
    return workdir


@pytest.mark.long
def test_frontier_says_what_evaluate_says_of_each_size(flexible, tmp_path, run):
    out = tmp_path / "frontier.png"
    told = json.loads(run("frontier", flexible, "--patch_sizes", "2,8", "--out", out, "--json"))
    points = told["points"]
    assert [(p["patch_size"], p["tokens"]) for p in points] == [(2, 17), (8, 2)]
    for point in points:
        alone = json.loads(run("evaluate", flexible, "--patch_size", point["patch_size"], "--json"))
        assert point["top1"] == alone["top1"]
        assert point["ms"] > 0
    assert any(p["best"] for p in points)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_file_can_be_written_at_another_patch_size(flexible, tmp_path, run):
    run("convert", flexible, tmp_path / "w.npz", "--dialect", "official", "--patch_size", "8")
    written, wanted = read(tmp_path / "w.npz"), read(flexible, Wish(patch_size=8))
    assert written.params["embed"]["patch"]["kernel"].shape == (8, 8, 1, 16)
    jax.tree.map(np.testing.assert_array_equal, written.params, wanted.params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--patch_sizes", "2,x"), "sizes '2,x' are not whole numbers of pixels with commas"),
        (("--patch_sizes", "3"), "model.image_size=8 is not a multiple of model.patch_size=3"),
        (("--timed_batch", "0"), "--timed_batch=0 must be at least 1"),
    ],
)
def test_frontier_refuses(flexible, run, arguments, message):
    assert message in run("frontier", flexible, *arguments, code=2)
