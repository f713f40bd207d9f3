"""The benchmark of a whole run starts one and gives two rates. No figure is judged: timing is not a test."""

import os
import re
import subprocess
import sys

import pytest

TINY = (
    "model.image_size=8 model.width=16 model.depth=1 model.heads=2 model.mlp_width=16 "
    "train.epochs=0 train.steps=6 train.log_every=2 train.batch_size=8 optim.warmup_steps=0"
)


@pytest.mark.slow  # processes that import jax and compile
def test_a_run_and_its_step_alone_are_timed():
    fields = [f"--config.{field}" for field in TINY.split()]
    command = [sys.executable, "benchmarks/whole.py", "--seconds", "0.1", "--", *fields]
    told = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": "."}
    )
    assert told.returncode == 0, told.stderr
    rates = re.fullmatch(r"step ([\d.]+), run ([\d.]+) images/s: [\d.]+", told.stdout.splitlines()[-1])
    assert rates is not None
    assert all(float(rate) > 0 for rate in rates.groups())
