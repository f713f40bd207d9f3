"""The best step by any metric, and a run that stops early: at the same step, whatever was killed before."""

import json
import math
import os
import signal
import typing
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from commands import call
from tiny_run import CONFIG_FILE, final_digests, read_until, start, tiny, untimed_metrics

import vit_jax
from vit_jax import config
from vit_jax.cli import info
from vit_jax.data import sources
from vit_jax.data.source import Splits
from vit_jax.errors import UserError
from vit_jax.run import evaluation, loop, patience, sweep, sweep_points
from vit_jax.run.checkpoint import Best
from vit_jax.run.clock import Clock
from vit_jax.run.first_state import Fixed
from vit_jax.run.patience import Standing, of_record
from vit_jax.run.report import Reporter
from vit_jax.sections import Spec, Train
from vit_jax.sections.training import BestName
from vit_jax.training import evaluate
from vit_jax.weights.formats import orbax

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")
# A loss that never moves: the first evaluation, after step 2, is the best, and the fourth after it the last.
STILL = (
    "optim.lr=1e-30",
    "train.best=loss",
    "train.eval_every=2",
    "train.checkpoint_every=5",
    "train.patience=4",
)
LAST = 10


def still(*fields):
    cfg = config.apply(tiny(log_every=3), ["--config.model.depth=1", "--config.model.dropout=0"])
    return config.apply(cfg, [f"--config.{field}" for field in (*STILL, *fields)])


class Fails(vit_jax.Sink):
    """Ends the run where values of that name and step are told: as a kill does, nothing is saved after it."""

    def __init__(self, step, name):
        self.at = step, name

    def add(self, step, values):
        if step == self.at[0] and self.at[1] in values:
            raise RuntimeError("killed")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, optax_dtypes, one_device):
    folder = tmp_path_factory.mktemp("sweep") / "run"
    assert loop.run(still(), folder).step == LAST
    return folder


def test_a_run_that_does_not_improve_ends_as_any_other_and_says_so(monkeypatch, capsys, undisturbed):
    rows = untimed_metrics(undisturbed)
    assert [row["step"] for row in rows if "train/loss" in row] == [3, 6, 9, LAST]
    evaluated = [row for row in rows if "eval/top1" in row]
    assert [row["step"] for row in evaluated] == [2, 4, 6, 8, 10]
    assert orbax.steps_in(undisturbed / "checkpoints") == [5, LAST]
    assert orbax.steps_in(undisturbed / "best") == [2]
    line = "stopped early after step 10: the last 4 evaluations had no better loss than 2.3026"
    log = (undisturbed / "log.txt").read_text().splitlines()
    assert line in log
    assert log[-3].startswith("done: ")
    code, out, _ = call(monkeypatch, capsys, info, undisturbed)
    assert code == 0
    assert f"end            {line}" in out.splitlines()
    code, out, _ = call(monkeypatch, capsys, info, undisturbed, "--json")
    assert json.loads(out)["stopped_early"] == line
    row = sweep._row(sweep_points.Point("run", ()), undisturbed.parent)
    assert (row["state"], row["step"]) == ("finished", LAST)


@pytest.mark.long
@pytest.mark.parametrize(
    "at",
    [
        (8, "eval/top1"),
        (LAST, "train/loss"),
        *(pytest.param((step, "train/loss"), marks=pytest.mark.slow) for step in (6, 9)),
    ],
)
def test_a_run_that_was_killed_stops_at_the_same_step(tmp_path, undisturbed, at):
    with pytest.raises(RuntimeError, match="killed"):
        loop.run(still(), tmp_path, sinks=[Fails(*at)])
    assert orbax.steps_in(tmp_path / "checkpoints") == [5]
    for _ in range(2):  # the second time there is nothing left to do
        assert loop.run(still(), tmp_path).step == LAST
        assert final_digests(tmp_path) == final_digests(undisturbed)
        assert untimed_metrics(tmp_path) == untimed_metrics(undisturbed)


@pytest.mark.long
def test_more_patience_goes_on(tmp_path):
    cfg = still("train.patience=1")
    assert loop.run(cfg, tmp_path).step == 4
    more = config.apply(cfg, ["--config.train.patience=2"])
    assert loop.run(more, tmp_path, accept_change=True).step == 6


@pytest.mark.slow
def test_a_process_that_was_killed_stops_at_the_same_step(tmp_path, undisturbed):
    file, workdir = tmp_path / "tiny.py", tmp_path / "run"
    file.write_text(CONFIG_FILE)
    fields = ("model.depth=1", "model.dropout=0", "train.log_every=3", *STILL)
    arguments = [f"--config.{field}" for field in fields]
    process = start(file, workdir, *arguments)
    read_until(process, "^step 8: evaluation")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    process = start(file, workdir, *arguments)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert "stopped early after step 10: the last 4" in out
    assert final_digests(workdir)[0] == LAST
    assert untimed_metrics(workdir) == untimed_metrics(undisturbed)


def test_a_standing_counts_evaluations_without_a_better_metric():
    cfg = Train(steps=9, eval_every=1, patience=2, best="loss")
    standing, ended = Standing({}), []
    for loss in (math.nan, 3.0, 2.0, math.nan, 1.5, 1.5, 1.6):
        standing = standing.after({"loss": loss, "top1": 0.5}, cfg)
        assert of_record(json.loads(json.dumps(standing.record(cfg))), cfg) == standing or math.isnan(loss)
        ended.append(standing.ended(cfg))
    assert (standing.best, standing.waited) == (1.5, 2)
    assert ended == [False] * 6 + [True]
    assert "no better loss than 1.5000" in patience.message(7, standing.record(cfg))
    other = Train(steps=9, eval_every=1, patience=2)
    assert of_record(standing.record(cfg), other) == Standing(standing.metrics)
    assert of_record({"metrics": {"top1": 1.0}}, other) == Standing({"top1": 1.0})  # of an older run
    assert patience.message(7, {"metrics": {}}) == ""


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(
    ("metric", "step"), [("map", 1), ("top1", 2), ("top5", 3), ("macro", 4), ("loss", 5)]
)
def test_the_best_is_that_of_the_metric_and_ties_keep_the_first(tmp_path, monkeypatch, metric, step, mean):
    cfg = config.apply(tiny(), [f"--config.train.best={metric}"])
    best_at = {"map": 1, "top1": 2, "top5": 3, "macro": 4, "loss": 5}  # and as good once more at 6

    def measured(params, *_):
        better = float(params["x"]) > 0 or not mean  # with a running mean it is the better one
        good = lambda name: float(better and now in (best_at[name], 6))
        return {name: good(name) if sign > 0 else 1 - good(name) for name, sign in evaluate.SIGN.items()}

    monkeypatch.setattr(evaluation, "format_metrics", lambda *_: "")
    forms = SimpleNamespace(unpack=lambda tree: tree)
    whole = lambda params, base: params
    setup: Any = SimpleNamespace(cfg=cfg, spec=Spec(), steps=6, forms=forms, evaluate=measured, whole=whole)
    best = Best(tmp_path / "best", metric)
    source = sources.digits(train=False)
    judge = evaluation.Evaluations(setup, Fixed(), source, best, Reporter([]), Clock())
    state: Any = SimpleNamespace(params={"x": jnp.zeros(())}, ema={"x": jnp.ones(())} if mean else None)
    standing = Standing({})
    for now in range(1, 7):
        standing = judge(state, now, standing)
    best.close()
    assert orbax.steps_in(tmp_path / "best") == [step]
    assert (standing.best, standing.waited) == (0 if metric == "loss" else 1, 6 - step)
    again = Best(tmp_path / "best", metric)
    assert again.score == best.score == evaluate.score({metric: standing.best}, metric)
    again.close()
    path = tmp_path / "best" / str(step)
    kept = orbax.read_trees(path, orbax.read_record(path), params={"x": jnp.zeros(())})
    assert float(kept["params"]["x"]) == mean


def test_what_cannot_be_waited_for_is_refused(tmp_path):
    assert typing.get_args(BestName) == tuple(evaluate.SIGN)
    for field, message in {
        "train.best=top3": "train.best='top3' is not one of top1, top5, macro, map, loss",
        "train.patience=-1": "train.patience=-1 must be at least 0",
        "train.patience=2": "train.patience=2 counts evaluations: set train.eval_every to have some",
    }.items():
        with pytest.raises(UserError, match=message):
            config.apply(tiny(eval_every=0), [f"--config.{field}"])
    digits = sources.digits(train=True)
    few = sources.arrays(digits.images[:60], digits.labels_n[:60] % 3, "abc")
    with pytest.raises(UserError, match=r"train.best=top5 is not measured on this data: give one of top1, "):
        loop.run(still("train.best=top5"), tmp_path / "x", data=Splits(few, few))
    assert not (tmp_path / "x").exists()
