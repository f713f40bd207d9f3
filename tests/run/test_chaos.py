"""Thirty kills at chosen moments, and no trace of them."""

import itertools
import os
import random
import re
import signal

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from tiny_run import CONFIG_FILE, final_digests, read_until, start, untimed_metrics

from vit_jax.weights.formats import orbax

STEPS = 250
EXTRA = (
    "--config.optim.ema=0.9",
    f"--config.train.steps={STEPS}",
    "--config.train.checkpoint_every=5",
    "--config.train.eval_every=10",
)


def at_a_step(line, workdir):
    return re.match(r"step \d+/", line)


def in_a_save(line, workdir):
    """What was left of an earlier save is gone by the first step."""
    return at_a_step(line, workdir) and list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def in_an_evaluation(line, workdir):
    """The step before it is told, its result is not."""
    step = re.match(r"step (\d*0)/", line)
    if not step:
        return False
    return f"step {step[1]}: " not in (workdir / "log.txt").read_text().splitlines()[-1]


# What a line and the work directory look like at the moment; None: nothing is waited for, so that the process
# is in its first second, still importing. At `device:` it has not yet read the checkpoint.
MOMENTS = {
    "at once": None,
    "at its first line": lambda line, workdir: line.startswith("device:"),
    "at a step": at_a_step,
    "in a save": in_a_save,
    "in an evaluation": in_an_evaluation,
}
KILLS = list(itertools.product(MOMENTS, (signal.SIGKILL, signal.SIGTERM), range(3)))


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG_FILE)
    return path


def kill(process, workdir, moment, number, skip):
    """Send `number` at the moment, `skip` such lines later; the process is held still while that is told."""
    reached = MOMENTS[moment]
    for line in process.stdout if reached else ():
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        skip -= bool(reached(line, workdir))
        if skip < 0:
            break
        process.send_signal(signal.SIGCONT)
    assert skip < 0 or not reached, f"{moment} never came: {process.stderr.read()}"
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)  # until then it does not hear SIGTERM
    process.communicate()
    # A SIGTERM before training begins ends the process as it does any other.
    assert process.returncode in (-number, 128 + number), (moment, number)


def arrays(workdir):
    """All arrays of the last checkpoint, as they are on disk."""
    with orbax.context():
        path = workdir / "checkpoints" / str(STEPS)
        return ocp.load_checkpointables(str(path), {"params": None, "rest": None})


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Sharding info not provided:UserWarning"
)  # they are read as they were written
def test_thirty_kills_leave_no_trace(config_file, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    process = start(config_file, undisturbed, *EXTRA)
    process.communicate()
    assert process.returncode == 0
    rng = random.Random(0)
    assert len(KILLS) == 30
    for moment, number, _ in rng.sample(KILLS, len(KILLS)):
        skip = rng.randrange(8) if moment == "at a step" else 0
        kill(start(config_file, killed, *EXTRA), killed, moment, number, skip)
    process = start(config_file, killed, *EXTRA)
    read_until(process, "^run: continues after step ")
    process.communicate()
    assert process.returncode == 0
    assert final_digests(killed) == final_digests(undisturbed)
    got, wanted = arrays(killed), arrays(undisturbed)
    assert {"opt_state", "window", "guard", "ema"} <= set(wanted["rest"])
    jax.tree.map(np.testing.assert_array_equal, got, wanted)  # the position in the data is the step
    assert untimed_metrics(killed) == untimed_metrics(undisturbed)
    steps = [line["step"] for line in untimed_metrics(killed) if "train/loss" in line]
    assert steps == list(range(1, STEPS + 1))
