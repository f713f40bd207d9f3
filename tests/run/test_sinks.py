"""A caller's own sinks get all values and lines of a run, and are closed even after an error."""

import json
import logging

import pytest
from tiny_run import tiny

import vit_jax
from vit_jax import config
from vit_jax.errors import UserError
from vit_jax.run import sinks
from vit_jax.run.loggers import Csv
from vit_jax.run.report import Reporter
from vit_jax.run.sinks import Metrics
from vit_jax.run.workdir import metrics_in

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")


class Seen(vit_jax.Sink):
    """Remembers all; fails at a step, or when it is closed, if so asked."""

    def __init__(self, fails_at: int | str = "never") -> None:
        self.values, self.lines, self.calls, self.fails_at = [], [], [], fails_at

    def add(self, step, values):
        if step == self.fails_at:
            raise RuntimeError("no connection")
        self.values.append({"step": step, **values})

    def say(self, line):
        self.lines.append(line)

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")
        if self.fails_at == "close":
            raise RuntimeError("cannot close")


def test_sinks_are_told_what_the_files_hold_and_steps_again_after_one_has_ended_the_run(tmp_path):
    cfg = tiny(steps=6, eval_every=3, log_every=1, checkpoint_every=2)
    cfg = config.apply(cfg, ["--config.model.depth=1", "--config.model.dropout=0"])
    bad, other = Seen(fails_at=5), Seen()
    with pytest.raises(RuntimeError, match="no connection"):
        vit_jax.train(cfg, tmp_path, sinks=[bad, other])
    assert bad.calls == other.calls == ["flush"] * 3 + ["close"]  # checkpoints 2 and 4, evaluation 3
    seen = Seen()
    vit_jax.train(cfg, tmp_path, sinks=[seen])
    assert [row["step"] for row in seen.values] == [5, 6, 6]
    assert {"train/loss", "train/images_per_s"} < seen.values[0].keys()
    assert "eval/top1" in seen.values[-1]
    metrics = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert other.values + seen.values == [json.loads(line) for line in metrics]
    log = (tmp_path / "log.txt").read_text().splitlines()
    said = [line for text in other.lines + seen.lines for line in text.splitlines()]
    assert said == [line for line in log if "images/s" not in line]
    assert seen.calls == ["flush"] * 3 + ["close"]  # evaluation 6, checkpoint 6, the end


def test_all_are_closed_and_the_first_error_is_the_one_that_is_seen():
    logger = logging.getLogger("vit_jax")
    handlers, failing, other = list(logger.handlers), Seen(fails_at="close"), Seen()
    with pytest.raises(RuntimeError, match="cannot close"), Reporter([failing, other]):
        logger.warning("an image was skipped")
    assert other.lines == ["an image was skipped"]
    assert other.calls == failing.calls == ["close"]
    with pytest.raises(KeyError), Reporter([failing, other]):
        raise KeyError("the cause")
    assert list(logger.handlers) == handlers
    assert logger.propagate


def test_a_line_that_a_kill_cut_off_is_passed_over_and_the_others_stay_byte_for_byte(tmp_path):
    path, first, second = tmp_path / "metrics.jsonl", '{"step": 1,  "train/loss": 1e0}\n', '{"step": 2}\n'
    assert metrics_in(path) == []
    path.write_text(f'{first}{second}{{"step": 3, "tra')
    assert metrics_in(path) == [{"step": 1, "train/loss": 1.0}, {"step": 2}]
    assert sinks.reached(path) == 2
    Csv(path, tmp_path / "metrics.csv").flush()
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,train/loss", "1,1.0", "2,"]
    Metrics(path, step=2)
    assert path.read_text() == first + second
    Metrics(path, step=1)
    assert path.read_text() == first
    for damaged in ("{\n", "\n", "3\n", '{"train/loss": 1.0}\n', '{"step": "x"}\n'):
        path.write_text(damaged + first)
        with pytest.raises(
            UserError, match=r"jsonl cannot be read \(.+\): remove what is wrong in it, or all"
        ):
            metrics_in(path)


def test_a_picture_is_drawn_at_the_first_flush_and_at_the_end_and_between_when_others_had_nine_tenths(
    tmp_path, monkeypatch
):
    metrics, drawn, next_at = Metrics(tmp_path / "metrics.jsonl", step=0), [], [0.0, float("inf"), 0.0]

    def draw(lines, path):
        drawn.append([line["step"] for line in lines])
        return next_at.pop(0)

    monkeypatch.setattr(sinks, "_draw", draw)
    curves = sinks.Curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    curves.flush()
    assert drawn == []  # nothing to draw
    for step in (1, 2, 3, 4):
        for sink in (metrics, curves):
            sink.add(step, {"train/loss": 1.0})
        curves.flush()
        curves._artist.submit(int).result()  # after what was asked of it before
    assert drawn == [[1], [1, 2]]  # the time after the second is far away
    curves.close()
    assert drawn[2:] == [[1, 2, 3, 4]]


def test_a_picture_that_cannot_be_drawn_is_an_error(tmp_path):
    Metrics(tmp_path / "metrics.jsonl", step=0).add(1, {"train/loss": 1.0})
    curves = sinks.Curves(tmp_path / "metrics.jsonl", tmp_path / "missing" / "curves.png")
    with pytest.raises(FileNotFoundError):
        curves.close()
