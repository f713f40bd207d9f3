"""Two runs compared: the planted cause is named, and where they part."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from commands import call, digits_run
from device_meshes import mesh_of
from tiny_run import tiny

import vit_jax
from vit_jax import config
from vit_jax.cli import diff
from vit_jax.data import sources
from vit_jax.data.source import Splits
from vit_jax.run import loop, provenance
from vit_jax.training import mesh as meshes

pytestmark = [pytest.mark.usefixtures("optax_dtypes"), pytest.mark.long]


@pytest.fixture(scope="module")
def weights(tmp_path_factory, one_device):
    """A weights file, and the same with one number changed."""
    folder = tmp_path_factory.mktemp("weights")
    digits_run(folder / "run")
    vit_jax.save(folder / "sound.npz", vit_jax.load(folder / "run"), dialect="official")
    with np.load(folder / "sound.npz") as file:
        arrays = dict(file)
    arrays["head/bias"] = arrays["head/bias"] + np.float32([0, 0, 1, *[0] * 7])
    np.savez(folder / "damaged.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory, weights, one_device):
    """`train(**what)`: the folder of a run of four steps."""

    def run(*, arguments=(), data=None, mesh=one_device, versions=None, of="sound"):
        folder = tmp_path_factory.mktemp("run") / "run"
        (folder.parent / "init.npz").symlink_to(weights / f"{of}.npz")
        cfg = tiny(steps=4, log_every=1, eval_every=2)
        cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, mlp_width=16, dropout=0.0))
        cfg = config.apply(cfg, ["--config.optim.warmup_steps=1", *arguments])
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder.parent)
            patch.setattr(meshes, "make", lambda device, fsdp: mesh)
            if versions:
                known = provenance.collect() | {"versions": provenance.collect()["versions"] | versions}
                patch.setattr(provenance, "collect", lambda: known)
            loop.run(dataclasses.replace(cfg, init="init.npz"), folder, data=data)
        return folder

    return run


@pytest.fixture(scope="module")
def base(train):
    return train()


def compared(monkeypatch, capsys, *runs):
    code, out, _ = call(monkeypatch, capsys, diff, *runs, "--json")
    return code, json.loads(out.splitlines()[-1])  # after what runs that were made in the test have said


def shuffled():
    """The digits with two training images in each other's place."""
    splits = sources.open_splits(tiny().data)
    images = [np.stack([s.get(i)[0] for i in range(s.size)]) for s in splits]
    labels = [s.labels().copy() for s in splits]
    names = splits.train.class_names
    images[0], labels[0] = images[0][::-1], labels[0][::-1]
    return Splits(*(sources.arrays(x, y, names) for x, y in zip(images, labels, strict=True)))


PLANTED = {
    "seed": ({"arguments": ["--config.seed=1"]}, "config", "seed: 0 -> 1"),
    "version": ({"versions": {"jax": "0.0.1"}}, "versions", " -> 0.0.1"),
    "field": ({"arguments": ["--config.optim.lr=0.002"]}, "config", "optim.lr: 0.001 -> 0.002"),
    "data order": ({"data": shuffled}, "data", "examples of the first batch have other pixels or labels"),
    "device count": ({"mesh": 2}, "devices", "devices: 1 x cpu (data=1, fsdp=1), 1 process -> 2 x cpu"),
    "damaged weight": ({"of": "damaged"}, "weights", "1 of 40 initial arrays differ: ['head']['bias']"),
}


SLOW = {"device count"}  # a program of its own to compile


@pytest.mark.parametrize(
    "cause", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in PLANTED]
)
def test_a_planted_cause_is_named(train, base, monkeypatch, capsys, cause):
    what, kind, line = PLANTED[cause]
    made = {"data": lambda make: make(), "mesh": mesh_of}
    other = train(**{name: made.get(name, lambda x: x)(value) for name, value in what.items()})
    code, facts = compared(monkeypatch, capsys, base, other)
    first, *_ = facts["differs"]
    assert (first, line in facts["differs"][first][0]) == (kind, True), facts["differs"]
    assert set(facts["differs"]) <= {kind, "data"}  # of which only the seed changes the order of the data
    assert ("data" in facts["differs"]) == (cause in ("seed", "data order"))
    curves = facts["curves"]
    if cause == "version":  # that was only said to be another
        assert (code, curves["same"], curves["steps"]) == (0, True, [4, 4])
        return
    assert (code, curves["same"]) == (1, False)
    # Another rate shows in the first step, as it is reported.
    step = curves["first"]["step"]
    assert curves["same_until"] == step - 1
    a, b = ([json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (base, other))
    values = lambda rows: next(
        r[curves["first"]["name"]] for r in rows if r["step"] == step and curves["first"]["name"] in r
    )
    assert curves["first"]["values"] == [values(a), values(b)]
    out = call(monkeypatch, capsys, diff, base, other)[1].splitlines()
    assert out[-1].startswith(f"they part at step {step}, ")
    assert out[-1].endswith(f"look at the {kind} first: {facts['differs'][kind][0]}")


def test_a_run_is_the_same_as_itself_and_as_one_that_was_repeated(train, base, monkeypatch, capsys):
    again = train()
    capsys.readouterr()
    for other in (base, again):
        code, out, _ = call(monkeypatch, capsys, diff, base, other)
        assert code == 0
        assert out.splitlines() == [
            "no difference is known of how they began",
            "curves    the same to the last digit in 28 numbers, to step 4",
        ]


def test_what_is_no_run_or_is_of_an_older_version_is_said(base, monkeypatch, capsys, tmp_path):
    code, _, err = call(monkeypatch, capsys, diff, base, tmp_path)
    assert (code, err[-1]) == (2, f"error: {tmp_path} is no work directory of a run: it has no config.json")
    (tmp_path / "config.json").write_text("{")
    code, _, err = call(monkeypatch, capsys, diff, base, tmp_path)
    assert (code, f"{tmp_path}/config.json cannot be read as a file of a run" in err[-1]) == (2, True)
    code, _, err = call(monkeypatch, capsys, diff, base, base / "config.json")
    assert (code, "is no work directory of a run" in err[-1]) == (2, True)
    shutil.copytree(base, tmp_path / "old")
    (tmp_path / "old" / "origin.json").unlink()
    assert compared(monkeypatch, capsys, base, tmp_path / "old")[0] == 0
    (tmp_path / "old" / "metrics.jsonl").write_text('{"step": 4, "train/loss": NaN}\n')
    shutil.copytree(tmp_path / "old", tmp_path / "other")
    assert compared(monkeypatch, capsys, tmp_path / "old", tmp_path / "other")[0] == 0
    code, out, _ = call(monkeypatch, capsys, diff, base, tmp_path / "old")
    assert (code, out.splitlines()[-1].startswith("they part at step 4, train/loss ")) == (1, True)
    (tmp_path / "old" / "metrics.jsonl").unlink()
    code, out, _ = call(monkeypatch, capsys, diff, base, tmp_path / "old")
    assert (code, "no step was reported by both" in out) == (1, True)
    assert "unknown, as are weights and data: the other has no origin.json" in out
