"""The pure train and evaluation steps. They need jax, flax and optax, and nothing of the host.

Dims: b batch, h w pixels, c channels or classes.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vit_jax.config import Preprocess
from vit_jax.training.losses import in_top, softmax_cross_entropy


class Sums(NamedTuple):
    """Float32 sums over examples, to be divided by `weight` once."""

    loss: jax.Array
    top1: jax.Array
    top5: jax.Array
    weight: jax.Array


class State(NamedTuple):
    """All that a step changes. `window` sums the metrics since the last log line, so that a restored run
    logs the same numbers."""

    step: jax.Array
    params: Any
    opt_state: Any
    window: Sums


def init_state(params: Any, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), zero_sums())


def train_step(
    state: State,
    batch: Any,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    seed: int,
    log_every: int,
) -> State:
    """One update. `batch` has uint8 `image` [b, h, w, c], int32 `label` [b], float32 `weight` [b].

    Dropout is drawn from `(seed, step)`: the step may be repeated anywhere with the same result.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    image_bhwc = normalise(batch.image, preprocess)

    def loss_of(params: Any) -> tuple[jax.Array, Sums]:
        logits_bc: Any = model.apply({"params": params}, image_bhwc, train=True, rngs={"dropout": key})
        sums = measure(logits_bc, batch.label, batch.weight)
        return sums.loss / jnp.maximum(sums.weight, 1.0), sums

    grads, sums = jax.grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    begins = state.step % log_every == 0
    window = jax.tree.map(lambda old, new: jnp.where(begins, 0.0, old) + new, state.window, sums)
    return State(state.step + 1, params, opt_state, window)


def eval_step(params: Any, batch: Any, *, model: nn.Module, preprocess: Preprocess) -> Sums:
    """Metric sums of a batch without dropout; rows of weight 0 do not count."""
    logits_bc: Any = model.apply({"params": params}, normalise(batch.image, preprocess), train=False)
    return measure(logits_bc, batch.label, batch.weight)


def normalise(image_bhwc: jax.Array, cfg: Preprocess) -> jax.Array:
    """uint8 to float32: (x/255 - mean) / std, written so that mean = std = 0.5 gives (x - 127.5) / 127.5."""
    scale = lambda values: 255.0 * jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1)
    return (image_bhwc.astype(jnp.float32) - scale(cfg.mean)) / scale(cfg.std)


def measure(logits_bc: jax.Array, label_b: jax.Array, weight_b: jax.Array) -> Sums:
    """Weighted sums of the loss and of the hits."""
    total = lambda x_b: (x_b * weight_b).sum()
    loss_b = softmax_cross_entropy(logits_bc, label_b)
    return Sums(
        loss=total(loss_b),
        top1=total(in_top(logits_bc, label_b, 1)),
        top5=total(in_top(logits_bc, label_b, 5)),
        weight=weight_b.sum(),
    )


def zero_sums() -> Sums:
    """Sums over nothing."""
    return Sums(*(jnp.zeros((), jnp.float32) for _ in Sums._fields))
