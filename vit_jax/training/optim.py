"""Optimizers, on optax."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vit_jax.models.stack import STACK, is_stacked, stack, unstack
from vit_jax.sections import Optim
from vit_jax.training import schedules, tables

ADAFACTOR_SMALLEST = 32  # smaller dimensions are not factored; big_vision's value
ADAFACTOR_POWER = 0.8  # of the step, in the decay of the squared mean; arXiv:1804.04235 section 7.2
MUON_RMS = 0.2  # of an update's entries, as AdamW's are, so that both take one rate; arXiv:2502.16982 eq. 4


def make(cfg: Optim, steps: int) -> optax.GradientTransformation:
    """Clip, precondition, decay, scale by layer and by the schedule, for the parameters that are trained.

    Decay is decoupled (arXiv:1711.05101). Frozen parameters have no optimizer state and do not count in the
    clipped norm.
    """
    decay = optax.add_decayed_weights(cfg.weight_decay, lambda params: tables.decayed(params, cfg))
    parts = [
        clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
        RULES[cfg.name](cfg),
        decay if cfg.weight_decay else optax.identity(),
        _each_layer(optax.scale_by_trust_ratio()) if cfg.name == "lamb" else optax.identity(),
        _scale_layers(cfg.layer_decay) if cfg.layer_decay < 1 else optax.identity(),
        optax.scale_by_learning_rate(schedules.make(cfg, steps)),
    ]
    if not cfg.trained and not cfg.frozen:
        return optax.chain(*parts)

    def labels(params: Any) -> Any:
        chosen = tables.trained(params, cfg)
        return jax.tree.map(lambda trained: "trained" if trained else "frozen", chosen)

    return optax.partition({"trained": optax.chain(*parts), "frozen": optax.set_to_zero()}, labels)


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """optax's transformation of this name, to the bit: two scalars are chosen instead of every element.

    XLA's kernels of an update are half as long. To multiply by one scalar would save more of them, but then
    XLA keeps more of the new state beside the old (tests/training/test_memory.py).
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        norm = optax.tree.norm(updates)
        within = norm < largest
        divisor, factor = jnp.where(within, 1.0, norm), jnp.where(within, 1.0, largest)
        clip = lambda x: x / divisor.astype(x.dtype) * factor.astype(x.dtype)
        return jax.tree.map(clip, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def total_steps(steps: int, epochs: float, examples: int, batch_size: int) -> int:
    """The length of a run that is given in steps, or in epochs of `examples`."""
    return steps or max(1, math.ceil(epochs * examples / batch_size))


def follow(mean: Any, params: Any, decay: float) -> Any:
    """One step of the running mean of the parameters: decay * mean + (1 - decay) * params."""
    return jax.tree.map(lambda m, p: m + (1 - decay) * (p - m), mean, params)


def _each_layer(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """`rule`, which looks at a whole array, applied to each of the layers that are in one array."""

    def axes(tree: Any) -> Any:
        first = lambda x: {name: 0 if name == STACK else None for name in x} if is_stacked(x) else None
        return jax.tree.map(first, tree, is_leaf=is_stacked)

    def init(params: Any) -> Any:
        if not is_stacked(params):
            return rule.init(params)
        depth = jax.tree.leaves(params[STACK])[0].shape[0]
        return stack(rule.init(unstack(params, depth)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if not is_stacked(updates):
            return rule.update(updates, state, params)
        mapped = axes((updates, state, params))
        return jax.vmap(rule.update, in_axes=mapped, out_axes=mapped[:2])(updates, state, params)

    return optax.GradientTransformation(init, update)


def _adam(cfg: Optim) -> optax.GradientTransformation:
    return optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps, mu_dtype=jnp.dtype(cfg.momentum_dtype))


def _adafactor(cfg: Optim) -> optax.GradientTransformation:
    """Factored squared mean, updates of RMS at most 1, momentum. arXiv:2106.04560 section 3.4."""
    beta2 = lambda step, power: jnp.minimum(cfg.beta2, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -power)
    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=ADAFACTOR_POWER, min_dim_size_to_factor=ADAFACTOR_SMALLEST, decay_rate_fn=beta2
        ),
        optax.clip_by_block_rms(1.0),
        optax.ema(cfg.momentum, debias=False, accumulator_dtype=jnp.dtype(cfg.momentum_dtype)),
    )


def _muon(cfg: Optim, rest: optax.GradientTransformation) -> optax.GradientTransformation:
    """Orthogonalised Nesterov momentum for the blocks' kernels, `rest` for all else."""
    muon = contrib.muon(
        1.0,
        beta=cfg.momentum,
        mu_dtype=jnp.dtype(cfg.momentum_dtype),
        muon_weight_dimension_numbers=tables.matrices,
        consistent_rms=MUON_RMS,
    )

    def labels(params: Any) -> Any:
        is_leaf = lambda x: x is None or isinstance(x, contrib.MuonDimensionNumbers)
        return jax.tree.map(lambda d: "muon" if d else "rest", tables.matrices(params), is_leaf=is_leaf)

    # optax's muon is a whole optimizer, whose updates are already negative
    return optax.partition({"muon": optax.chain(muon, optax.scale(-1.0)), "rest": rest}, labels)


def _scale_layers(decay: float) -> optax.GradientTransformation:
    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda scale, u: u * scale, tables.layer_scales(updates, decay), updates)

    return optax.stateless(update)


# For each `Optim.name`, how gradients become updates before decay and learning rate.
RULES: dict[str, Callable[[Optim], optax.GradientTransformation]] = {
    "adamw": _adam,
    "sgd": lambda cfg: optax.trace(cfg.momentum, accumulator_dtype=jnp.dtype(cfg.momentum_dtype)),
    "adafactor": lambda cfg: _each_layer(_adafactor(cfg)),
    "lion": lambda cfg: optax.scale_by_lion(cfg.beta1, cfg.beta2, mu_dtype=jnp.dtype(cfg.momentum_dtype)),
    "lamb": _adam,  # its trust ratio comes after decay, in `make`
    "muon": lambda cfg: _each_layer(_muon(cfg, _adam(cfg))),
}
