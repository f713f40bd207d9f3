"""Thirty kills at any moment, and no trace of them."""

import json
import random
import signal

import pytest
from test_run import CONFIG_FILE, final_digests, read_until, start, untimed_metrics

from vit_jax.training import checkpoint

KILLS = 30
STEPS = 900
EXTRA = (
    "--config.optim.ema=0.9",
    f"--config.train.steps={STEPS}",
    "--config.train.checkpoint_every=5",
    "--config.train.eval_every=25",
)
# Lines after which a process is killed: its first words, a step, a step whose checkpoint is being written
# (the line comes just before it), an evaluation.
MOMENTS = ("^device:", r"^step \d+/", r"^step \d*[50]/", r"^step \d+: evaluation")


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG_FILE)
    return path


@pytest.mark.slow
def test_thirty_kills_leave_no_trace(config_file, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    process = start(config_file, undisturbed, *EXTRA)
    process.communicate()
    assert process.returncode == 0
    rng = random.Random(0)
    for i in range(KILLS):
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        process = start(config_file, killed, *EXTRA)
        read_until(process, MOMENTS[i % len(MOMENTS)])
        process.send_signal(number)
        process.communicate()
        # A SIGTERM before training begins ends the process as it does any other.
        assert process.returncode in (-number, 128 + number)
    process = start(config_file, killed, *EXTRA)
    read_until(process, "^run: ")
    process.communicate()
    assert process.returncode == 0
    assert final_digests(killed) == final_digests(undisturbed)  # parameters, EMA, optimizer state, window
    last = checkpoint.read_record(killed / "checkpoints" / str(STEPS))
    assert "['ema']" in json.dumps(list(last["digests"]["rest"]))
    assert untimed_metrics(killed) == untimed_metrics(undisturbed)
    steps = [line["step"] for line in untimed_metrics(killed) if "train/loss" in line]
    assert steps == list(range(1, STEPS + 1))
