"""Health lines come on runs that were made sick on purpose, each with its part, and not on healthy ones."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_run import final_digests, tiny, untimed_metrics

import vit_jax
from vit_jax import config
from vit_jax.data import sources
from vit_jax.data.source import Splits
from vit_jax.models import build
from vit_jax.run import health, loop
from vit_jax.run.health import mistakes, unusual

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")
# A small model of 16 tokens that learns the digits, measured at steps 50, 100, 150 and 200.
SMALL = {
    "model": {"patch_size": 2, "width": 32, "mlp_width": 64, "dropout": 0.0},
    "optim": {"lr": 3e-3, "warmup_steps": 20},
    "train": {"steps": 201, "batch_size": 64, "log_every": 50, "checkpoint_every": 999, "eval_every": 0},
}


def small(**sections):
    """The config of a small run with `train.health`, and with other values of some fields."""
    tree = config.to_dict(tiny())
    for values in (SMALL, {"train": {"health": True}}, sections):
        for section, fields in values.items():
            if isinstance(fields, dict):
                tree[section].update(fields)
            else:
                tree[section] = fields
    return config.parse(tree)


def said(cfg, folder, **options):
    """The health lines of a run, without their steps, and its metrics."""
    loop.run(cfg, folder, **options)
    lines = [line.split(": ", 1) for line in (folder / "log.txt").read_text().splitlines()]
    return [line[1] for line in lines if line[0].startswith("health at step")], untimed_metrics(folder)


def first_weights(folder, change=lambda params: params):
    """A file of weights for the small model, changed."""
    loaded_like = small()
    model = dataclasses.replace(loaded_like.model, classes=10)
    params = build.init(build.build(model), jax.random.key(0), image_hw=model.image_hw, channels=1)
    return params


@pytest.mark.slow
def test_a_rate_a_hundred_times_too_high_is_said(tmp_path):
    lines, _ = said(small(optim={"lr": 0.3}), tmp_path)
    assert any(line.startswith("norm: an update is of its weights a share of") for line in lines)
    assert any("lower optim.lr" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("qk_norm", [False, True])
def test_bfloat16_without_qk_norm_is_said_and_with_it_there_is_nothing_to_say(tmp_path, qk_norm):
    model = {"dtype": "bfloat16", "qk_norm": qk_norm}
    lines, metrics = said(small(model=model, optim={"lr": 3e-2}), tmp_path)
    print(qk_norm, lines, json.dumps(metrics, indent=0))
    assert any("largest attention logit" in line for line in lines) != qk_norm


@pytest.mark.slow
def test_flipped_labels_are_said(tmp_path):
    train = sources.digits(train=True)
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(train.size) < 0.4, rng.integers(0, 10, train.size), train.labels())
    flipped = dataclasses.replace(train, label=noisy.astype(np.int32))
    lines, metrics = said(small(train={"steps": 401}), tmp_path, data=Splits(flipped, sources.digits(train=False)))
    print(lines, json.dumps(metrics, indent=0))
    assert [line.split(": ")[0] for line in lines] == ["labels"]
