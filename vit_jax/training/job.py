"""Everything of a run that is fixed before its first step: spec, length, compiled functions, layout."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from vit_jax.config import Config, Spec, preprocess_of
from vit_jax.data.sources import Source
from vit_jax.models import build
from vit_jax.training import mesh as meshes
from vit_jax.training import optim
from vit_jax.training.evaluate import Evaluator
from vit_jax.training.step import State, init_state, train_step


class Splits(NamedTuple):
    """The data of a run."""

    train: Source
    eval: Source


class Job(NamedTuple):
    """`init()` gives the first State, `step(state, batch)` the next; `abstract` has its shapes and layout."""

    cfg: Config
    spec: Spec
    steps: int
    mesh: Mesh
    data: Splits
    schedule: optax.Schedule
    abstract: State
    init: Callable[[], State]
    step: Callable[[State, Any], State]
    evaluate: Evaluator


def make(cfg: Config, mesh: Mesh, data: Splits) -> Job:
    """The job of `cfg` on `mesh`. Shapes only: no array is made. Raises UserError for what does not fit."""
    train = cfg.train
    steps = optim.total_steps(train.steps, train.epochs, data.train.size, train.batch_size)
    meshes.check_batch("train.batch_size", train.batch_size, mesh)
    spec = describe(cfg, data.train)
    model = build.build(spec.model)
    optimizer = optim.make(cfg.optim, steps)

    def init() -> State:
        key = jax.random.key(cfg.seed)
        params = build.init(model, key, image_hw=spec.model.image_hw, channels=cfg.data.channels)
        return init_state(params, optimizer)

    shapes = jax.eval_shape(init)
    layout = meshes.shardings(shapes, mesh)
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        preprocess=spec.preprocess,
        seed=cfg.seed,
        log_every=train.log_every,
    )
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return Job(
        cfg=cfg,
        spec=spec,
        steps=steps,
        mesh=mesh,
        data=data,
        schedule=optim.schedule(cfg.optim, steps),
        abstract=jax.tree.map(place, shapes, layout),
        init=jax.jit(init, out_shardings=layout),
        step=jax.jit(step, donate_argnums=0, out_shardings=layout),
        evaluate=Evaluator(model, spec, mesh, train.eval_batch_size or train.batch_size),
    )


def describe(cfg: Config, source: Source) -> Spec:
    """The Spec of a run: the config's model with the data's class count, and its preprocessing."""
    classes = cfg.model.classes or len(source.class_names)
    return Spec(
        model=dataclasses.replace(cfg.model, classes=classes),
        preprocess=preprocess_of(cfg.data),
        class_names=source.class_names,
    )
