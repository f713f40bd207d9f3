"""Everything of a run that is fixed before its first step: spec, length, compiled functions, layout."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vit_jax.config import preprocess_of
from vit_jax.data import cache
from vit_jax.data.sources import Source
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.stack import stack, unstack
from vit_jax.run import refs
from vit_jax.sections import Config, Spec
from vit_jax.training import mesh as meshes
from vit_jax.training import optim, schedules, tables
from vit_jax.training.evaluate import Evaluator
from vit_jax.training.step import State, Teacher, init_state, train_step


class Splits(NamedTuple):
    """The data of a run."""

    train: Source
    eval: Source


class Job(NamedTuple):
    """`init()` or `adopt(params)` gives the first State, `step(state, batch)` the next.

    `abstract` has its shapes and layout. A step also tells, as a number above 0, that the run must stop.
    `lower(state, batch)` takes shapes as well: it is for who wants to know or compile the step ahead.
    Outside, the layers of parameters are written out: `unpack(tree)` gives that form of a State or of a part
    of one, `stored` has the shapes and layout of a whole one, and `pack(state)` goes back.
    """

    cfg: Config
    spec: Spec
    steps: int
    mesh: Mesh
    data: Splits
    schedule: jax.stages.Wrapped
    abstract: State
    stored: State
    pack: Callable[[State], State]
    unpack: Callable[[Any], Any]
    init: jax.stages.Wrapped
    adopt: Callable[[Any], State]
    step: Callable[[State, Any], tuple[State, jax.Array]]
    lower: Callable[[State, Any], jax.stages.Lowered]
    evaluate: Evaluator


def make(cfg: Config, mesh: Mesh, data: Splits) -> Job:
    """The job of `cfg` on `mesh`. Shapes only: no array is made. Raises UserError for what does not fit."""
    train = cfg.train
    steps = optim.total_steps(train.steps, train.epochs, data.train.size, train.batch_size)
    meshes.check_batch("train.batch_size", train.batch_size, mesh, parts=train.micro_batches)
    spec = describe(cfg, data.train)
    model = build.build(spec.model, scan=train.scan, remat=train.remat)
    optimizer = optim.make(cfg.optim, steps)

    def fresh() -> Any:
        key = jax.random.key(cfg.seed)
        return build.init(model, key, image_hw=spec.model.image_hw, channels=cfg.data.channels)

    params = jax.eval_shape(fresh)
    tables.check(cfg.optim, params)
    stacked = train.scan and tables.same_in_all_blocks(cfg.optim, params)
    pack = stack if stacked else lambda tree: tree
    unpack = functools.partial(unstack, depth=cfg.model.depth) if stacked else lambda tree: tree
    begin = lambda params: init_state(pack(params), optimizer, ema=bool(cfg.optim.ema))
    init = lambda: begin(fresh())

    keep = functools.partial(cache.keep, cfg=cfg.data, image_hw=spec.model.image_hw)
    shapes = jax.eval_shape(init)
    layout = meshes.shardings(shapes, mesh)
    step, lower = _step(cfg, spec, model, optimizer, layout)
    return Job(
        cfg=cfg,
        spec=spec,
        steps=steps,
        mesh=mesh,
        data=Splits(keep(data.train, train=True), keep(data.eval, train=False)),
        schedule=jax.jit(schedules.make(cfg.optim, steps)),
        abstract=_placed(shapes, mesh),
        stored=_placed(jax.eval_shape(unpack, shapes), mesh),
        pack=jax.jit(pack, out_shardings=layout) if stacked else pack,
        unpack=unpack,
        init=jax.jit(init, out_shardings=layout),
        adopt=jax.jit(begin, out_shardings=layout),
        step=step,
        lower=lower,
        evaluate=Evaluator(model, spec, mesh, train.eval_batch_size or train.batch_size),
    )


def compile_ahead(job: Job, *, fresh: bool) -> None:
    """Compile what the run will call, step and evaluation and, if it is `fresh`, what makes its first state.

    Of a fresh run that does not scan nothing is compiled later.
    """
    if fresh:
        job.init.lower().compile()
    job.lower(job.abstract, batch_like(job)).compile()
    job.schedule(0)
    job.evaluate.compile(job.abstract.params)


def batch_like(job: Job) -> Any:
    """Shapes and layout of a global batch."""
    return meshes.batch_like(
        job.cfg.train.batch_size, job.spec.model.image_hw, job.cfg.data.channels, job.mesh
    )


def _placed(shapes: Any, mesh: Mesh) -> Any:
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(place, shapes, meshes.shardings(shapes, mesh))


def _step(
    cfg: Config, spec: Spec, model: nn.Module, optimizer: optax.GradientTransformation, layout: Any
) -> tuple[Callable[..., tuple[State, jax.Array]], Callable[..., jax.stages.Lowered]]:
    teacher, teacher_params = _teacher(cfg, spec)
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        preprocess=spec.preprocess,
        seed=cfg.seed,
        log_every=cfg.train.log_every,
        loss=cfg.loss,
        micro_batches=cfg.train.micro_batches,
        sam_rho=cfg.optim.sam_rho,
        ema=cfg.optim.ema,
        teacher=teacher,
        max_skipped=cfg.train.max_skipped,
        spike=cfg.train.spike,
    )
    mesh = jax.tree.leaves(layout)[0].mesh
    teacher_params = jax.device_put(teacher_params, meshes.shardings(teacher_params, mesh))

    def step_and_tell(state: State, batch: Any, taught_by: Any) -> tuple[State, jax.Array]:
        state = step(state, batch, teacher_params=taught_by)
        return state, state.guard.halted.astype(jnp.float32)  # an array of its own: the state is donated next

    outcome = (layout, meshes.everywhere(mesh))
    compiled = jax.jit(step_and_tell, donate_argnums=0, out_shardings=outcome)
    run = lambda state, batch: compiled(state, batch, teacher_params)
    return run, lambda state, batch: compiled.lower(state, batch, teacher_params)


def _teacher(cfg: Config, spec: Spec) -> tuple[Teacher | None, Any]:
    """Who `cfg.loss` distils from, at the student's image size. Raises UserError if it sees another world."""
    if not cfg.loss.teacher:
        return None, None
    weights, _ = refs.read(cfg.loss.teacher, image_size=spec.model.image_size, posemb_method=cfg.init_posemb)
    pairs = {
        "classes": (weights.model.classes, spec.model.classes),
        "channels": (weights.preprocess.channels, spec.preprocess.channels),
    }
    for name, (its, ours) in pairs.items():
        if its != ours:
            raise UserError(f"loss.teacher={cfg.loss.teacher} has {its} {name}, the run has {ours}")
    return Teacher(build.build(weights.model), weights.preprocess), weights.params


def describe(cfg: Config, source: Source) -> Spec:
    """The Spec of a run: the config's model with the data's class count, and its preprocessing."""
    classes = cfg.model.classes or len(source.class_names)
    return Spec(
        model=dataclasses.replace(cfg.model, classes=classes),
        preprocess=preprocess_of(cfg.data),
        class_names=source.class_names,
    )
