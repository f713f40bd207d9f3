"""A caller's own sinks get all values and lines of a run, and are closed even after an error."""

import json
import logging

import pytest
from tiny_run import tiny

import vit_jax
from vit_jax import config
from vit_jax.run.report import Reporter

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
