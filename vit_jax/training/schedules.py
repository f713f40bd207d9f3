"""Learning rates as functions of the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vit_jax.errors import UserError
from vit_jax.sections import Optim

# For each `Optim.schedule`, the share of the peak rate at `t` of the steps after warm-up, from 0 to 1.
DECAYS: dict[str, Callable[[jax.Array, int, int], jax.Array]] = {
    "cosine": lambda t, *_: (1 + jnp.cos(jnp.pi * jnp.minimum(t, 1.0))) / 2,
    "linear": lambda t, *_: 1 - jnp.minimum(t, 1.0),
    "rsqrt": lambda t, length, timescale: jax.lax.rsqrt(t * length / timescale + 1),
    "constant": lambda t, *_: jnp.ones_like(t),
}


def make(cfg: Optim, steps: int) -> optax.Schedule:
    """Learning rate of update `step` (from 0), float32: warm-up, decay and cool-down multiplied.

    With t = step - warm-up and T = steps - warm-up, the decay is (1 + cos(pi t/T)) / 2, 1 - t/T,
    sqrt(s / (t + s)) with s = timescale_steps, or 1. The last `cooldown_steps` go linearly to 0 on top
    (arXiv:2106.04560 section 3.5). Raises UserError if warm-up and cool-down leave nothing in between.
    """
    up, down = ramps(cfg, steps)
    if up + down >= steps:
        given = [f"optim.{name}={value:g}" for name, value in _given(cfg) if value]
        raise UserError(
            f"{' and '.join(given)} leave{'s' if len(given) == 1 else ''} nothing of the {steps} steps: use "
            f"fewer, or a share of the run, such as {given[0].partition('=')[0]}=0.05"
        )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        now = jnp.asarray(step, jnp.float32)
        length = steps - up
        t = jnp.maximum(now - up, 0.0) / length
        decay = DECAYS[cfg.schedule](t, length, cfg.timescale_steps)
        warm = jnp.minimum(now / up, 1.0) if up else 1.0
        cool = jnp.clip((steps - now) / down, 0.0, 1.0) if down else 1.0
        return cfg.lr * warm * decay * cool

    return schedule


def ramps(cfg: Optim, steps: int) -> tuple[int, int]:
    """Steps of warm-up and of cool-down in a run of `steps`, where they may be given as shares of it."""
    up, down = (round(value * steps) if value < 1 else int(value) for _, value in _given(cfg))
    return up, down


def _given(cfg: Optim) -> tuple[tuple[str, int | float], ...]:
    return ("warmup_steps", cfg.warmup_steps), ("cooldown_steps", cfg.cooldown_steps)
