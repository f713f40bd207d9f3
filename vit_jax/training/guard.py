"""What a step is judged by: the usual loss, and how many bad steps in a row were skipped."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.training.optim import follow

USUAL_DECAY = 0.98  # of the usual loss: a mean over about 50 steps
SPIKE_AFTER = 50  # steps before a loss is compared with the usual one


class Guard(NamedTuple):
    """Steps skipped so far, int32; the usual loss, a float32 running mean; whether the run must stop."""

    skipped: jax.Array
    usual: jax.Array
    halted: jax.Array


def open_guard() -> Guard:
    """The guard of a new run: nothing skipped, no usual loss yet."""
    return Guard(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.bool_))


def compare_with_usual(
    guard: Guard, step: jax.Array, sound: jax.Array, loss: jax.Array, spike: float
) -> tuple[jax.Array, jax.Array]:
    """`sound`, but False for a `loss` above `spike` times the usual one (0: any), and the new usual loss."""
    if spike:
        sound &= (step < SPIKE_AFTER) | (loss <= spike * guard.usual)
    return sound, jnp.where(step == 0, loss, follow(guard.usual, loss, USUAL_DECAY))
