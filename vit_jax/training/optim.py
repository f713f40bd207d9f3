"""Optimizers and learning-rate schedules, on optax."""

import math
from typing import Any

import jax
import optax

from vit_jax.config import Optim
from vit_jax.errors import UserError


def make(cfg: Optim, steps: int) -> optax.GradientTransformation:
    """Clip, precondition, decay kernels, scale by the schedule. Decay is decoupled (arXiv:1711.05101)."""
    if cfg.warmup_steps >= steps:
        raise UserError(
            f"optim.warmup_steps={cfg.warmup_steps} leaves nothing of the {steps} steps: use fewer"
        )
    rules = {
        "adamw": lambda: optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps),
        "sgd": lambda: optax.trace(cfg.momentum),
    }
    parts = [
        optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
        rules[cfg.name](),
        optax.add_decayed_weights(cfg.weight_decay, decayed) if cfg.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(schedule(cfg, steps)),
    ]
    return optax.chain(*parts)


def schedule(cfg: Optim, steps: int) -> optax.Schedule:
    """Learning rate of update `step` (from 0): linear warm-up from 0, then the decay to 0 at `steps`."""
    decay_steps = steps - cfg.warmup_steps
    decays = {
        "cosine": lambda: optax.cosine_decay_schedule(cfg.lr, decay_steps),
        "linear": lambda: optax.linear_schedule(cfg.lr, 0.0, decay_steps),
        "constant": lambda: optax.constant_schedule(cfg.lr),
    }
    if not cfg.warmup_steps:
        return decays[cfg.schedule]()
    warmup = optax.linear_schedule(0.0, cfg.lr, cfg.warmup_steps)
    return optax.join_schedules([warmup, decays[cfg.schedule]()], [cfg.warmup_steps])


def decayed(params: Any) -> Any:
    """True for the leaves that weight decay applies to: kernels, not biases, scales, tokens or positions."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def total_steps(steps: int, epochs: float, examples: int, batch_size: int) -> int:
    """The length of a run that is given in steps, or in epochs of `examples`."""
    return steps or max(1, math.ceil(epochs * examples / batch_size))
