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

    With t = step - warmup_steps and T = steps - warmup_steps, the decay is (1 + cos(pi t/T)) / 2, 1 - t/T,
    sqrt(s / (t + s)) with s = timescale_steps, or 1. The last `cooldown_steps` go linearly to 0 on top
    (arXiv:2106.04560 section 3.5). Raises UserError if warm-up and cool-down leave nothing in between.
    """
    if cfg.warmup_steps + cfg.cooldown_steps >= steps:
        raise UserError(
            f"optim.warmup_steps={cfg.warmup_steps} leaves nothing of the {steps} steps: use fewer"
            if not cfg.cooldown_steps
            else f"optim.warmup_steps={cfg.warmup_steps} and optim.cooldown_steps={cfg.cooldown_steps} "
            f"leave nothing of the {steps} steps: use fewer"
        )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        now = jnp.asarray(step, jnp.float32)
        length = steps - cfg.warmup_steps
        t = jnp.maximum(now - cfg.warmup_steps, 0.0) / length
        decay = DECAYS[cfg.schedule](t, length, cfg.timescale_steps)
        warm = jnp.minimum(now / cfg.warmup_steps, 1.0) if cfg.warmup_steps else 1.0
        cool = jnp.clip((steps - now) / cfg.cooldown_steps, 0.0, 1.0) if cfg.cooldown_steps else 1.0
        return cfg.lr * warm * decay * cool

    return schedule
