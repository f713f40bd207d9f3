"""Runs of a tiny model on digits: in this process, or as a process that tests stop and kill."""

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

from environments import one_device
from paths import ROOT

from vit_jax import config
from vit_jax.weights.formats import orbax

CONFIG_FILE = """
from vit_jax import config

def get_config(arg=""):
    c = config.default()
    c.model.update(image_size=8, patch_size=4, width=16, depth=2, heads=2, mlp_width=32, dropout=0.1)
    c.data.update(name="digits", channels=1, augment="pad", pad_px=1, threads=2)
    c.optim.update(lr=1e-3, warmup_steps=5, weight_decay=0.01, clip_norm=1.0)
    c.train.update(steps=60, batch_size=32, eval_every=20, checkpoint_every=7, log_every=1)
    return c
"""
TIMINGS = ("train/images_per_s", "time/")


def tiny(**train):
    exec(CONFIG_FILE, namespace := {})
    tree = namespace["get_config"]()
    tree.train.update({"log_every": 10, "checkpoint_every": 20, **train})
    return config.parse(tree)


def signalled_after(last):
    """Stands in for distributed.stop_signals: SIGTERM comes at step `last`."""

    @contextmanager
    def stop_signals():
        yield lambda step: signal.SIGTERM if step == last else None

    return stop_signals


def start(config_file, workdir, *arguments):
    """A real training process on one CPU device."""
    env = one_device(JAX_COMPILATION_CACHE_DIR=str(config_file.parent / "compiled"))
    command = [
        sys.executable,
        "train.py",
        "--config",
        str(config_file),
        "--workdir",
        str(workdir),
        *arguments,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=env, **pipes)


def read_until(process, pattern):
    """Read lines until one matches; an end before that is an error of the test."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return line
    errors = process.stderr.read() if process.stderr else ""  # else they are among the lines
    raise AssertionError(f"{pattern!r} never came: {''.join(lines[-50:])}{errors}")


def final_digests(workdir):
    step = orbax.steps_in(workdir / "checkpoints")[-1]
    record = orbax.read_record(workdir / "checkpoints" / str(step))
    return record["step"], record["digests"]


def untimed_metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(TIMINGS)} for line in lines]
