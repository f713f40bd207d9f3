"""What is fixed before the first step is fixed without effects."""

import builtins
import dataclasses
import gc
import io
import mmap
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import tiny

from vit_jax import config
from vit_jax.data import sources
from vit_jax.data.source import Splits
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.run import first_state, plan, program
from vit_jax.run.setup import set_up
from vit_jax.training import mesh as meshes
from vit_jax.weights.adapt import Weights
from vit_jax.weights.report import Report

FIELDS = (
    ("optim.name=adamw", "optim.layer_decay=0.9", "optim.frozen=^embed", "optim.ema=0.9"),
    ("optim.name=muon", "train.scan=true", "data.cache_gib=0.01"),
    ("optim.name=adafactor", "loss.teacher=nowhere.npz", "optim.schedule=rsqrt"),
    ("optim.name=lamb", "optim.clip_norm=1", "optim.sam_rho=0.1", "train.micro_batches=4", "fsdp=2"),
)
pytestmark = pytest.mark.usefixtures("optax_dtypes")


def splits(cfg):
    return sources.open_splits(cfg.data)


def teacher_of(classes):
    """The teacher of a tiny run, as shapes."""
    cfg = tiny()
    model = config.apply(cfg, [f"--config.model.classes={classes}"]).model
    net = build.build(model)
    params = jax.eval_shape(lambda: build.init(net, jax.random.key(0), image_hw=(8, 8), channels=1))
    return Weights(model, params, (), config.preprocess_of(cfg.data), Report("nowhere.npz", "official", 0))


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: fields[0])
def test_set_up_makes_no_array_and_opens_no_file(monkeypatch, fields):
    cfg = config.apply(tiny(), [f"--config.{field}" for field in fields])
    data, mesh = splits(cfg), meshes.make(cfg.device, cfg.fsdp)
    teacher = teacher_of(10) if cfg.loss.teacher else None
    with jax.set_mesh(mesh):
        set_up(cfg, mesh, data, teacher)  # jax and optax import what they need, once
        gc.collect()
        before = {id(x) for x in jax.live_arrays()}
        with monkeypatch.context() as patch:
            opened = lambda *args, **kwargs: pytest.fail(f"opened {args}")
            for owner, name in ((builtins, "open"), (io, "open"), (os, "open"), (Path, "open")):
                patch.setattr(owner, name, opened)
            patch.setattr(mmap, "mmap", opened)
            setup = set_up(cfg, mesh, data, teacher)
        assert not [x for x in jax.live_arrays() if id(x) not in before]
        assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves((setup.forms, setup.teacher_params)))


def test_a_plan_reads_the_teacher_once(monkeypatch):
    cfg = config.apply(tiny(), ["--config.loss.teacher=nowhere.npz"])
    read, teacher = [], teacher_of(10)
    monkeypatch.setattr(first_state, "read_teacher", lambda cfg: read.append(cfg) or teacher)
    told = plan.Measured(2, {}, program.NO_COST, 1.0)
    monkeypatch.setattr(plan, "measure", lambda setup: told)  # the memory itself does not matter here
    made = plan.make(cfg, splits(cfg), limit_bytes=1)
    assert len(made.remedies) > 1
    assert read == [cfg]


def test_a_model_has_as_many_classes_as_the_data_or_more():
    mesh = meshes.make("cpu", 1)
    more, fewer = (config.apply(tiny(), [f"--config.model.classes={n}"]) for n in (11, 9))
    assert set_up(more, mesh, splits(more)).spec.model.classes == 11
    with pytest.raises(UserError, match=r"model.classes=9 is fewer than the 10 of the data: leave it 0"):
        set_up(fewer, mesh, splits(fewer))


def test_data_without_examples_is_refused():
    cfg = tiny()
    empty = sources.arrays(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64), list("0123456789"))
    for data, split in (
        (Splits(empty, splits(cfg).eval), "train"),
        (Splits(splits(cfg).train, empty), "eval"),
    ):
        with pytest.raises(UserError, match=f"the {split} split has no examples: give some"):
            set_up(cfg, meshes.make("cpu", 1), data)


def test_a_teacher_of_other_classes_is_an_error():
    cfg = config.apply(tiny(), ["--config.loss.teacher=nowhere.npz"])
    with pytest.raises(UserError, match=r"loss.teacher=nowhere.npz has 7 classes, the run has 10"):
        set_up(cfg, meshes.make("cpu", 1), splits(cfg), teacher_of(7))
    headless = teacher_of(7)._replace(model=dataclasses.replace(cfg.model, classes=0))
    with pytest.raises(UserError, match=r"loss.teacher=nowhere.npz has no head, so it teaches no class"):
        set_up(cfg, meshes.make("cpu", 1), splits(cfg), headless)
