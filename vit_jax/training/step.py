"""The train and evaluation steps: pure functions that need jax, flax and optax alone.

Dims: b batch, h w pixels, c channels or classes, m micro-batches.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vit_jax.models import lora
from vit_jax.models.vitals import HEALTH
from vit_jax.patches import Patches
from vit_jax.sections import Loss, Optim, Preprocess, Train
from vit_jax.training import losses
from vit_jax.training.guard import Guard, compare_with_usual, open_guard
from vit_jax.training.losses import in_top, in_top_of
from vit_jax.training.mixing import Examples, prepare
from vit_jax.training.optim import follow

DROPOUT, MIX, PATCH = 0, 1, 2  # streams of random numbers that never meet


class Sums(NamedTuple):
    """Float32 sums over examples, to be divided by `weight` once."""

    loss: jax.Array
    top1: jax.Array
    top5: jax.Array
    weight: jax.Array


class EvalSums(NamedTuple):
    """Float32 sums over examples: loss, hits among the best five, and hits and examples per class [c].

    `confusion_cc` counts examples by true and predicted class; None where there are too many classes.
    """

    loss: jax.Array
    top5: jax.Array
    hits_c: jax.Array
    examples_c: jax.Array
    confusion_cc: jax.Array | None = None


class State(NamedTuple):
    """All that a step changes.

    `window` sums the metrics since the last log line, so that a restored run logs the same numbers. `ema` is
    the running mean of the parameters, or None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    window: Sums
    guard: Guard
    ema: Any


class Teacher(NamedTuple):
    """The distillation teacher; its parameters are an argument of the step."""

    model: nn.Module
    preprocess: Preprocess


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a step needs beside arrays; `optimizer` is made from `optim` and the length of the run.

    `class_weights` are those of `loss.class_weights`, one per class; empty: all are 1. `repeats` is how many
    copies of an image follow one another in a batch.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    preprocess: Preprocess
    seed: int
    train: Train
    optim: Optim = dataclasses.field(default_factory=Optim)
    loss: Loss = dataclasses.field(default_factory=Loss)
    teacher: Teacher | None = None
    class_weights: tuple[float, ...] = ()
    repeats: int = 1


def init_state(params: Any, optimizer: optax.GradientTransformation, *, ema: bool = False) -> State:
    """The state before the first step; the running mean starts at the parameters."""
    mean = jax.tree.map(jnp.copy, params) if ema else None  # a copy: both are donated
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), zero_sums(), open_guard(), mean)


def train_step(
    state: State, batch: Any, teacher_params: Any = None, base_params: Any = None, *, recipe: Recipe
) -> State:
    """One update. `batch` has uint8 `image` [b, h, w, c] or Patches, int32 `label` [b], float32 `weight` [b].

    With `optim.lora_rank` the state has what models/lora.py calls trained, and `base_params` is the base.

    Where examples may be of several classes, `label` is uint8 [b, classes], 1 at each of them.

    Dropout, mixing and the size of patches are drawn from `(seed, step)`: the step may be repeated anywhere
    with the same result.
    A step with a bad loss or gradient changes nothing but the count of skipped steps. The one that follows
    `train.max_skipped` of them halts: the state stays as it was before that step, whatever comes after.
    """
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    examples = examples_of(batch, recipe, key)
    total = jnp.maximum(examples.weight.sum(), 1.0)
    fixed = {"teacher_params": teacher_params, "base_params": base_params}
    dropout = jax.random.fold_in(key, DROPOUT)

    def gradient(model: nn.Module) -> tuple[Any, Sums]:
        objective = functools.partial(loss_of, total=total, model=model, recipe=recipe, **fixed)
        return _gradient(objective, state.params, examples, key=dropout, recipe=recipe)

    grads, sums = _at_drawn_patches(gradient, recipe, jax.random.fold_in(key, PATCH))
    updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    begins = state.step % recipe.train.log_every == 0
    state = state._replace(window=jax.tree.map(lambda x: jnp.where(begins, 0.0, x), state.window))
    window = jax.tree.map(jnp.add, state.window, sums)
    ema = follow(state.ema, params, recipe.optim.ema) if recipe.optim.ema else None
    # Not of the updates: all of the new state would wait for their norm, beside the old one in memory.
    sound = jnp.isfinite(sums.loss) & jnp.isfinite(optax.tree.norm(grads))
    sound, usual = compare_with_usual(state.guard, state.step, sound, sums.loss / total, recipe.train.spike)
    stepped = State(state.step + 1, params, opt_state, window, state.guard._replace(usual=usual), ema)
    return _guarded(state, stepped, sound, recipe.train.max_skipped)


def examples_of(batch: Any, recipe: Recipe, key: jax.Array) -> Examples:
    """The batch made ready for the loss, as a step with `key` mixes it."""
    return prepare(
        batch,
        recipe.model.cfg.classes,  # pyright: ignore
        key=jax.random.fold_in(key, MIX),
        cfg=recipe.loss,
        class_weights=recipe.class_weights,
        repeats=recipe.repeats,
    )


def _at_drawn_patches(
    gradient: Callable[[nn.Module], tuple[Any, Sums]], recipe: Recipe, key: jax.Array
) -> tuple[Any, Sums]:
    """`gradient` of the model at one of `train.patch_sizes`, drawn by `key`; each is compiled once.

    The choice is around the whole gradient: what each keeps for its backward pass is kept by it alone.
    """
    sizes = recipe.train.patch_sizes
    if not sizes:
        return gradient(recipe.model)
    drawn = jax.random.randint(key, (), 0, len(sizes))
    return jax.lax.switch(
        drawn, [functools.partial(gradient, recipe.model.clone(patch_size=size)) for size in sizes]
    )


def loss_of(
    params: Any,
    part: Examples,
    key: jax.Array,
    *,
    total: jax.Array,
    model: nn.Module,
    recipe: Recipe,
    teacher_params: Any,
    base_params: Any,
    watched: bool = False,
) -> tuple[jax.Array, Any]:
    """The share of a micro-batch in the mean loss over a batch of weight `total`, and its sums.

    If `watched`, in the place of the sums the logits and what models/vitals.py sows.
    """
    params = lora.merge(params, base_params, recipe.optim) if recipe.optim.lora_rank else params
    image = normalise(part.pixels, recipe.preprocess)
    options: Any = {"train": True, "rngs": {"dropout": key}, "mutable": [HEALTH] if watched else False}
    out: Any = model.apply({"params": params}, image, **options)
    logits = out[0] if watched else out
    teacher_bc: Any = None
    if recipe.teacher:
        teacher_bhwc = normalise(part.pixels, recipe.teacher.preprocess)
        teacher_bc = recipe.teacher.model.apply({"params": teacher_params}, teacher_bhwc)
    sums = training_sums(logits, part, teacher_bc, recipe.loss)
    return sums.loss / total, out if watched else sums


def _gradient(
    objective: Callable[..., Any], params: Any, examples: Examples, *, key: jax.Array, recipe: Recipe
) -> tuple[Any, Sums]:
    """The gradient of the mean loss, with `optim.sam_rho` that at the sharpest point nearby, and the sums."""
    gradient = jax.grad(objective, has_aux=True)
    at = lambda params: accumulate(gradient, params, examples, key=key, parts=recipe.train.micro_batches)
    grads, sums = at(params)
    if recipe.optim.sam_rho:
        grads, _ = at(sharpest(params, grads, recipe.optim.sam_rho))
    return grads, sums


def _guarded(state: State, stepped: State, sound: jax.Array, max_skipped: int) -> State:
    """`stepped` after a sound step, else `state` with one more step counted as skipped, or halted."""
    guard = state.guard
    halted = guard.halted | (~sound & (guard.skipped >= max_skipped))
    kept = state._replace(
        step=jnp.where(halted, state.step, state.step + 1),
        guard=Guard(jnp.where(halted, guard.skipped, guard.skipped + 1), guard.usual, halted),
    )
    take = sound & ~halted
    return jax.tree.map(lambda new, old: jax.lax.select(take, new, old), stepped, kept)


def accumulate(
    gradient: Callable[..., Any], params: Any, examples: Examples, *, key: jax.Array, parts: int
) -> tuple[Any, Sums]:
    """The sum of `gradient(params, part, key)`, a tree and Sums, over micro-batches one after another.

    Micro-batch j has the rows j, j + m, ...: those of one device stay on it, however many there are.
    """
    if parts == 1:
        return gradient(params, examples, key)
    split = lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    keys = jax.random.split(key, parts)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, *part)), None

    zeros = (jax.tree.map(jnp.zeros_like, params), zero_sums())
    return jax.lax.scan(add, zeros, (jax.tree.map(split, examples), keys))[0]


def sharpest(params: Any, grads: Any, rho: float) -> Any:
    """params + rho * grads / ||grads||: where the loss is highest nearby. arXiv:2010.01412 eq. 2."""
    scale = rho / (optax.tree.norm(grads) + jnp.finfo(jnp.float32).tiny)
    return jax.tree.map(lambda p, g: p + scale * g, params, grads)


def training_sums(logits: Any, part: Examples, teacher_bc: jax.Array | None, cfg: Loss) -> Sums:
    """The training loss, classes weighed, and hits: on the larger part of each label, or on one of several.

    `logits` [b, c], or those of the class and the distillation head, which learn from the labels and from the
    teacher; without a teacher both learn from the labels. With two heads, hits are those of their mean.
    """
    own_bc, student_bc = logits if isinstance(logits, tuple) else (logits, logits)
    weights = () if part.class_weight is None else (part.class_weight,)
    labels = lambda logits_bc: losses.KINDS[cfg.name](logits_bc, part.target, *weights)
    loss_b = labels(own_bc)
    if teacher_bc is not None:
        distill = {
            "soft": lambda: losses.soft_distillation(student_bc, teacher_bc, temperature=cfg.temperature),
            "hard": lambda: losses.hard_distillation(student_bc, teacher_bc),
        }
        loss_b = (1.0 - cfg.distill_weight) * loss_b + cfg.distill_weight * distill[cfg.distill]()
    elif isinstance(logits, tuple):
        loss_b = (loss_b + labels(student_bc)) / 2
    answer_bc = (own_bc + student_bc) / 2 if isinstance(logits, tuple) else own_bc
    if part.own is not None:
        return _sums(loss_b, functools.partial(in_top_of, answer_bc, part.own), part.weight)
    return _sums(loss_b, functools.partial(in_top, answer_bc, part.target.argmax(axis=1)), part.weight)


def eval_step(
    params: Any, batch: Any, *, model: nn.Module, preprocess: Preprocess, confused: bool = False
) -> EvalSums:
    """Metric sums of a batch without dropout, maybe with the confusion; rows of weight 0 do not count."""
    logits_bc: Any = model.apply({"params": params}, normalise(batch.image, preprocess), train=False)
    return measure(logits_bc, batch.label, batch.weight, confused=confused)


def normalise(image: Any, cfg: Preprocess) -> Any:
    """Pixels 0 to 255, also of Patches, to float32: (x/255 - mean) / std; of 0.5 both (x - 127.5) / 127.5."""
    if isinstance(image, Patches):
        return image._replace(pixels=normalise(image.pixels, cfg))
    scale = lambda values: 255.0 * jnp.asarray(values, jnp.float32).reshape(*(1,) * (image.ndim - 1), -1)
    return (image.astype(jnp.float32) - scale(cfg.mean)) / scale(cfg.std)


def measure(
    logits_bc: jax.Array, label_b: jax.Array, weight_b: jax.Array, *, confused: bool = False
) -> EvalSums:
    """Weighted sums of the softmax cross-entropy and of the hits, whatever loss the model was trained on."""
    top = functools.partial(in_top, logits_bc, label_b)
    sums = _sums(losses.softmax_cross_entropy(logits_bc, label_b), top, weight_b)
    by_class = lambda x_b: jnp.zeros(logits_bc.shape[1], jnp.float32).at[label_b].add(x_b)
    return EvalSums(
        loss=sums.loss,
        top5=sums.top5,
        hits_c=by_class(in_top(logits_bc, label_b, 1) * weight_b),
        examples_c=by_class(weight_b),
        confusion_cc=losses.confusion(logits_bc, label_b, weight_b) if confused else None,
    )


def zero_sums() -> Sums:
    """Sums over no examples."""
    return Sums(*(jnp.zeros((), jnp.float32) for _ in Sums._fields))


def _sums(loss_b: jax.Array, top: Callable[[int], jax.Array], weight_b: jax.Array) -> Sums:
    """`top(k)` says which examples are hit by the best k classes."""
    total = lambda x_b: (x_b * weight_b).sum()
    return Sums(total(loss_b), total(top(1)), total(top(5)), weight_b.sum())
