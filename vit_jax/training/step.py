"""The pure train and evaluation steps. They need jax, flax and optax, and nothing of the host.

Dims: b batch, h w pixels, c channels or classes, m micro-batches.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vit_jax.sections import Loss, Preprocess
from vit_jax.training import losses, mixing
from vit_jax.training.losses import in_top
from vit_jax.training.optim import follow

DROPOUT, MIX = 0, 1  # streams of random numbers that never meet
USUAL_DECAY = 0.98  # of the usual loss: a mean over about 50 steps
SPIKE_AFTER = 50  # steps until a loss can be told from the usual one


class Sums(NamedTuple):
    """Float32 sums over examples, to be divided by `weight` once."""

    loss: jax.Array
    top1: jax.Array
    top5: jax.Array
    weight: jax.Array


class Guard(NamedTuple):
    """Steps skipped so far, int32; the usual loss, a float32 running mean; whether the run must stop."""

    skipped: jax.Array
    usual: jax.Array
    halted: jax.Array


class State(NamedTuple):
    """All that a step changes. `window` sums the metrics since the last log line, so that a restored run
    logs the same numbers. `ema` is the running mean of the parameters, or None."""

    step: jax.Array
    params: Any
    opt_state: Any
    window: Sums
    guard: Guard
    ema: Any


class Teacher(NamedTuple):
    """Who is distilled from; its parameters are an argument of the step."""

    model: nn.Module
    preprocess: Preprocess


class Examples(NamedTuple):
    """A batch on its way into the loss: float32 pixels 0 to 255 [b, h, w, c], targets [b, c], weights [b]."""

    pixels: jax.Array
    target: jax.Array
    weight: jax.Array


def init_state(params: Any, optimizer: optax.GradientTransformation, *, ema: bool = False) -> State:
    """The state before the first step; the running mean starts at the parameters."""
    mean = jax.tree.map(jnp.copy, params) if ema else None  # a copy: both are donated
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), zero_sums(), open_guard(), mean)


def train_step(
    state: State,
    batch: Any,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    seed: int,
    log_every: int,
    loss: Loss | None = None,
    micro_batches: int = 1,
    sam_rho: float = 0.0,
    ema: float = 0.0,
    teacher: Teacher | None = None,
    teacher_params: Any = None,
    max_skipped: int = 0,
    spike: float = 0.0,
) -> State:
    """One update. `batch` has uint8 `image` [b, h, w, c], int32 `label` [b], float32 `weight` [b].

    Dropout and mixing are drawn from `(seed, step)`: the step may be repeated anywhere with the same result.
    A step that is not sound changes nothing but the count of skipped ones; the one after `max_skipped` of
    them halts: the state stays as it was before that step, whatever comes after.
    """
    cfg = loss or Loss()
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    examples = prepare(batch, model.cfg.classes, key=jax.random.fold_in(key, MIX), cfg=cfg)  # pyright: ignore
    total = jnp.maximum(examples.weight.sum(), 1.0)

    def loss_of(params: Any, part: Examples, key: jax.Array) -> tuple[jax.Array, Sums]:
        image_bhwc = normalise(part.pixels, preprocess)
        logits: Any = model.apply({"params": params}, image_bhwc, train=True, rngs={"dropout": key})
        taught_bc: Any = None
        if teacher:
            seen_bhwc = normalise(part.pixels, teacher.preprocess)
            taught_bc = teacher.model.apply({"params": teacher_params}, seen_bhwc)
        sums = training_sums(logits, part, taught_bc, cfg)
        return sums.loss / total, sums

    dropout = jax.random.fold_in(key, DROPOUT)
    gradients = lambda params: accumulate(
        jax.grad(loss_of, has_aux=True), params, examples, key=dropout, parts=micro_batches
    )
    grads, sums = gradients(state.params)
    if sam_rho:
        grads, _ = gradients(sharpest(state.params, grads, sam_rho))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    begins = state.step % log_every == 0
    state = state._replace(window=jax.tree.map(lambda x: jnp.where(begins, 0.0, x), state.window))
    window = jax.tree.map(jnp.add, state.window, sums)
    mean = follow(state.ema, params, ema) if ema else None
    # Not of the updates: all of the new state would wait for their norm, beside the old one in memory.
    sound = jnp.isfinite(sums.loss) & jnp.isfinite(optax.tree.norm(grads))
    value = sums.loss / total
    if spike:
        sound &= (state.step < SPIKE_AFTER) | (value <= spike * state.guard.usual)
    usual = jnp.where(state.step == 0, value, follow(state.guard.usual, value, USUAL_DECAY))
    stepped = State(state.step + 1, params, opt_state, window, state.guard._replace(usual=usual), mean)
    return _guarded(state, stepped, sound, max_skipped)


def _guarded(state: State, stepped: State, sound: jax.Array, max_skipped: int) -> State:
    """`stepped` if the step was sound, else `state` one step later, or halted."""
    guard = state.guard
    halted = guard.halted | (~sound & (guard.skipped >= max_skipped))
    kept = state._replace(
        step=jnp.where(halted, state.step, state.step + 1),
        guard=Guard(jnp.where(halted, guard.skipped, guard.skipped + 1), guard.usual, halted),
    )
    take = sound & ~halted
    return jax.tree.map(lambda new, old: jax.lax.select(take, new, old), stepped, kept)


def open_guard() -> Guard:
    """Nothing skipped, no usual loss yet."""
    return Guard(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.bool_))


def prepare(batch: Any, classes: int, *, key: jax.Array, cfg: Loss) -> Examples:
    """Smoothed labels, and images and labels mixed."""
    target_bc = losses.smooth(jnp.asarray(batch.label), classes, cfg.label_smoothing)
    pixels_bhwc = jnp.asarray(batch.image).astype(jnp.float32)
    pixels_bhwc, target_bc = mixing.mix(pixels_bhwc, target_bc, key=key, cfg=cfg)
    return Examples(pixels_bhwc, target_bc, jnp.asarray(batch.weight))


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


def training_sums(logits: Any, part: Examples, taught_bc: jax.Array | None, cfg: Loss) -> Sums:
    """The training loss, and the hits on the larger part of each label.

    `logits` [b, c], or those of the class and the distillation head, which learn from the labels and from the
    teacher; without a teacher both learn from the labels. With two heads, hits are those of their mean.
    """
    own_bc, student_bc = logits if isinstance(logits, tuple) else (logits, logits)
    kinds = {"softmax": losses.softmax, "sigmoid": losses.sigmoid}
    loss_b = kinds[cfg.name](own_bc, part.target)
    if taught_bc is not None:
        distill = {
            "soft": lambda: losses.soft_distillation(student_bc, taught_bc, temperature=cfg.temperature),
            "hard": lambda: losses.hard_distillation(student_bc, taught_bc),
        }
        loss_b = (1.0 - cfg.distill_weight) * loss_b + cfg.distill_weight * distill[cfg.distill]()
    elif isinstance(logits, tuple):
        loss_b = (loss_b + kinds[cfg.name](student_bc, part.target)) / 2
    answer_bc = (own_bc + student_bc) / 2 if isinstance(logits, tuple) else own_bc
    return _sums(loss_b, answer_bc, part.target.argmax(axis=1), part.weight)


def eval_step(params: Any, batch: Any, *, model: nn.Module, preprocess: Preprocess) -> Sums:
    """Metric sums of a batch without dropout; rows of weight 0 do not count."""
    logits_bc: Any = model.apply({"params": params}, normalise(batch.image, preprocess), train=False)
    return measure(logits_bc, batch.label, batch.weight)


def normalise(image_bhwc: jax.Array, cfg: Preprocess) -> jax.Array:
    """Pixels 0 to 255 to float32: (x/255 - mean) / std; mean = std = 0.5 gives (x - 127.5) / 127.5."""
    scale = lambda values: 255.0 * jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1)
    return (image_bhwc.astype(jnp.float32) - scale(cfg.mean)) / scale(cfg.std)


def measure(logits_bc: jax.Array, label_b: jax.Array, weight_b: jax.Array) -> Sums:
    """Weighted sums of the softmax cross-entropy and of the hits, whatever loss the model was trained on."""
    return _sums(losses.softmax_cross_entropy(logits_bc, label_b), logits_bc, label_b, weight_b)


def zero_sums() -> Sums:
    """Sums over nothing."""
    return Sums(*(jnp.zeros((), jnp.float32) for _ in Sums._fields))


def _sums(loss_b: jax.Array, logits_bc: jax.Array, label_b: jax.Array, weight_b: jax.Array) -> Sums:
    total = lambda x_b: (x_b * weight_b).sum()
    return Sums(
        loss=total(loss_b),
        top1=total(in_top(logits_bc, label_b, 1)),
        top5=total(in_top(logits_bc, label_b, 5)),
        weight=weight_b.sum(),
    )
