"""What is fixed before the first step of a run: spec, length, layout and compiled functions. No effects."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vit_jax.config import preprocess_of
from vit_jax.data.source import Source, Splits, read_labels
from vit_jax.errors import UserError
from vit_jax.models import build, lora
from vit_jax.models.stack import stack, unstack
from vit_jax.run import checks
from vit_jax.sections import Config, Optim, Spec, Train
from vit_jax.training import health, losses, optim, schedules, tables
from vit_jax.training import mesh as meshes
from vit_jax.training.evaluate import SIGN, Evaluator
from vit_jax.training.multilabel import MultiLabelEvaluator
from vit_jax.training.step import Recipe, State, init_state, train_step
from vit_jax.weights.adapt import Weights


@dataclasses.dataclass(frozen=True)
class Forms:
    """The two forms of a State: packed, as steps take it, and stored, with the layers of each block apart.

    `packed` and `stored` have the shapes and layout of either. `pack(state)` gives a packed State,
    `unpack(tree)` the stored form of a State or of a part of one.
    """

    packed: State
    stored: State
    pack: Callable[[State], State]
    unpack: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """A run before its first step. States are in the packed form.

    `init()` or `adopt(params)` gives the first State. `step(state, batch, teacher_params, base_params)` gives
    the next one and a float32 scalar, above 0 if the run must stop. `teacher_params` and `base_params` have
    shapes and layout, or are None. With `optim.lora_rank`, parameters of states are what is trained,
    `base(params)` gives the rest, and `whole(trained, base)` those of the model. `health` takes what `step`
    takes and gives the Vitals of training/health.py.
    """

    cfg: Config
    spec: Spec
    steps: int
    mesh: Mesh
    schedule: jax.stages.Wrapped
    forms: Forms
    init: jax.stages.Wrapped
    adopt: jax.stages.Wrapped
    step: jax.stages.Wrapped
    teacher_params: Any
    base_params: Any
    base: jax.stages.Wrapped
    whole: Callable[[Any, Any], Any]
    evaluate: Evaluator
    health: jax.stages.Wrapped

    def batch_like(self) -> Any:
        """Shapes and layout of a global batch."""
        return meshes.batch_like(self.cfg.train.batch_size, self.spec, self.mesh)

    def step_arguments(self) -> tuple[Any, ...]:
        """Shapes and layout of what `step` takes."""
        return self.forms.packed, self.batch_like(), self.teacher_params, self.base_params

    def lower_step(self) -> jax.stages.Lowered:
        """The step lowered for its shapes and layout, ready to compile."""
        return self.step.lower(*self.step_arguments())

    def compile_ahead(self, *, fresh: bool) -> None:
        """Compile step, schedule and evaluation and, if the run is `fresh`, what makes its first state.

        A fresh run that does not scan compiles nothing later.
        """
        if fresh:
            self.init.lower().compile()
        self.lower_step().compile()
        if self.cfg.train.health:
            self.health.lower(*self.step_arguments()).compile()
        self.schedule(0)
        self.evaluate.compile(self.model_params())

    def model_params(self) -> Any:
        """Shapes and layout of the parameters that the model takes, packed."""
        if not self.cfg.optim.lora_rank:
            return self.forms.packed.params
        return _placed(jax.eval_shape(self.whole, self.forms.packed.params, self.base_params), self.mesh)


def set_up(cfg: Config, mesh: Mesh, data: Splits, teacher: Weights | None = None) -> Setup:
    """The Setup of `cfg` on `mesh`, distilling from `teacher`. Makes no array and opens no file.

    (With loss.class_weights=balanced it asks for all labels, which some sources read from their files.)

    Raises UserError for fields that do not fit each other, the devices, the data or the teacher.
    """
    steps = _length(cfg, mesh, data)
    spec = describe(cfg, data.train)
    recipe = _recipe(cfg, spec, steps, data, teacher)
    model = recipe.model
    evaluate = _evaluator(model, spec, mesh, cfg.train)

    def fresh() -> Any:
        key = jax.random.key(cfg.seed)
        return build.init(model, key, image_hw=spec.model.image_hw, channels=cfg.data.channels)

    params = jax.eval_shape(fresh)
    stacked = _is_stacked(cfg, params)
    pack = stack if stacked else lambda tree: tree
    unpack = functools.partial(unstack, depth=cfg.model.depth) if stacked else lambda tree: tree
    begin = lambda params: init_state(pack(_apart(params, cfg)[0]), recipe.optimizer, ema=bool(cfg.optim.ema))
    base = lambda params: pack(_apart(params, cfg)[1])
    init = lambda: begin(fresh())

    shapes = jax.eval_shape(init)
    layout = meshes.shardings(shapes, mesh)
    return Setup(
        cfg=cfg,
        spec=spec,
        steps=steps,
        mesh=mesh,
        schedule=jax.jit(schedules.make(cfg.optim, steps)),
        forms=Forms(
            packed=_placed(shapes, mesh),
            stored=_placed(jax.eval_shape(unpack, shapes), mesh),
            pack=jax.jit(pack, out_shardings=layout) if stacked else pack,
            unpack=unpack,
        ),
        init=jax.jit(init, out_shardings=layout),
        adopt=jax.jit(begin, out_shardings=layout),
        step=_step(recipe, layout, mesh),
        teacher_params=teacher and _placed(teacher.params, mesh),
        base_params=_placed(jax.eval_shape(base, params), mesh) if cfg.optim.lora_rank else None,
        base=jax.jit(base, out_shardings=meshes.shardings(jax.eval_shape(base, params), mesh)),
        whole=_whole(cfg.optim, params, pack, mesh),
        evaluate=evaluate,
        health=_health(recipe, mesh),
    )


def _length(cfg: Config, mesh: Mesh, data: Splits) -> int:
    """The steps of the run. Raises UserError where length, batches and data do not fit each other."""
    train = cfg.train
    checks.check_data(cfg, data)
    steps = optim.total_steps(train.steps, train.epochs, data.train.size, train.batch_size)
    if (profiled := train.profiled()) and profiled[0] > steps:
        raise UserError(f"train.profile_steps={train.profile_steps} is after the last step, {steps}")
    meshes.check_batch("train.batch_size", train.batch_size, mesh, parts=train.micro_batches)
    return steps


def describe(cfg: Config, source: Source) -> Spec:
    """The Spec of a run: the config's model with the data's class count, and its preprocessing."""
    classes = cfg.model.classes or len(source.class_names)
    return Spec(
        model=dataclasses.replace(cfg.model, classes=classes),
        preprocess=preprocess_of(cfg.data),
        class_names=source.class_names,
        loss=cfg.loss.name,
        multi_label=source.multi_label,
    )


def _recipe(cfg: Config, spec: Spec, steps: int, data: Splits, teacher: Weights | None) -> Recipe:
    return Recipe(
        model=build.build(spec.model, scan=cfg.train.scan, remat=cfg.train.remat),
        optimizer=optim.make(cfg.optim, steps),
        preprocess=spec.preprocess,
        seed=cfg.seed,
        train=cfg.train,
        optim=cfg.optim,
        loss=cfg.loss,
        teacher=teacher and checks.teacher_of(cfg, spec, teacher),
        class_weights=_class_weights(cfg, spec.model.classes, data.train),
        repeats=cfg.data.repeats,
    )


def _evaluator(model: Any, spec: Spec, mesh: Mesh, train: Train) -> Evaluator:
    """Raises UserError where `train.best` is not measured."""
    kind = MultiLabelEvaluator if spec.multi_label else Evaluator
    evaluate = kind(model, spec, mesh, train.eval_batch_size or train.batch_size)
    if train.best not in evaluate.metrics:
        have = ", ".join(name for name in SIGN if name in evaluate.metrics)
        raise UserError(f"train.best={train.best} is not measured on this data: give one of {have}")
    return evaluate


def _is_stacked(cfg: Config, params: Any) -> bool:
    """Whether steps hold all layers in one array. Raises UserError for fields of `optim` that do not fit."""
    tables.check(cfg.optim, params)
    if cfg.optim.lora_rank:
        lora.check(params, cfg.optim)
    trained, _ = jax.eval_shape(lambda params: _apart(params, cfg), params)
    if cfg.optim.lora_rank and cfg.optim.layer_decay != 1 and tables.blocks(trained) != cfg.model.depth:
        raise UserError("optim.layer_decay with adapters wants them in every block: see optim.lora_kernels")
    return cfg.train.scan and tables.same_in_all_blocks(cfg.optim, trained, cfg.model.depth)


def _apart(params: Any, cfg: Config) -> tuple[Any, Any]:
    """(the trained parameters, the frozen ones that the model needs as well)."""
    if not cfg.optim.lora_rank:
        return params, {}
    return lora.split(params, cfg.optim, jax.random.key(cfg.seed))


def _whole(optim: Optim, params: Any, pack: Callable[[Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    if not optim.lora_rank:
        return lambda trained, base: trained
    layout = meshes.shardings(jax.eval_shape(pack, params), mesh)
    return jax.jit(functools.partial(lora.merge, cfg=optim), out_shardings=layout)


def _class_weights(cfg: Config, classes: int, source: Source) -> tuple[float, ...]:
    """`loss.class_weights` as numbers. Raises UserError unless there is one per class."""
    weights = cfg.loss.class_weights
    if isinstance(weights, str):
        return losses.balanced(read_labels(source), classes)
    if weights and len(weights) != classes:
        raise UserError(
            f"loss.class_weights has {len(weights)} numbers, the model {classes} classes: give one each"
        )
    return weights


def _placed(tree: Any, mesh: Mesh) -> Any:
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(place, tree, meshes.shardings(tree, mesh))


def _step(recipe: Recipe, layout: Any, mesh: Mesh) -> jax.stages.Wrapped:
    def step_and_halted(
        state: State, batch: Any, teacher_params: Any, base_params: Any = None
    ) -> tuple[State, jax.Array]:
        state = train_step(state, batch, teacher_params, base_params, recipe=recipe)
        return state, state.guard.halted.astype(jnp.float32)  # an array of its own: the state is donated next

    return jax.jit(step_and_halted, donate_argnums=0, out_shardings=(layout, meshes.everywhere(mesh)))


def _health(recipe: Recipe, mesh: Mesh) -> jax.stages.Wrapped:
    train = recipe.train
    parts = health.parts_of(train.batch_size, devices=mesh.size, micro_batches=train.micro_batches)
    measure = functools.partial(health.measure, recipe=recipe, parts=parts)
    return jax.jit(measure, out_shardings=meshes.everywhere(mesh))
