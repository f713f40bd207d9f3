"""The stack of blocks: written out or scanned, kept or computed again in the backward pass.

Parameters are those of the written-out form, block_0, block_1, ..., in both: a scan stacks them inside the
program, so that checkpoints, optimizers and weight files know one form only.

Dims: b batch, n tokens, d width.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.sections import Model

# What the backward pass finds kept; all else is computed again. `dots`: products with weights, not attention.
POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def run_blocks(
    parent: nn.Module,
    kind: Callable[..., nn.Module],
    x_bnd: jax.Array,
    *,
    train: bool,
    last: Callable[..., nn.Module] | None = None,
) -> jax.Array:
    """`x_bnd` through blocks `kind(cfg, drop_rate)`, submodules of `parent` (in its compact method).

    Where `last` is given and there is no scan, it makes the last block. Drop rates grow linearly to
    cfg.stochastic_depth (arXiv:1603.09382). A scan draws other dropout.
    """
    cfg: Model = parent.cfg  # pyright: ignore[reportAttributeAccessIssue]
    rates = np.linspace(0.0, cfg.stochastic_depth, cfg.depth)
    if cfg.scan and not parent.is_initializing():
        return _scanned(parent, kind, x_bnd, rates, train=train)
    call: Any = lambda block, x_bnd: block(x_bnd, train=train)
    if cfg.remat != "none":
        call = nn.remat(call, policy=POLICIES[cfg.remat])
    for i, rate in enumerate(rates):
        make = last if last and i == cfg.depth - 1 else kind
        x_bnd = call(make(cfg, float(rate), name=f"block_{i}"), x_bnd)
    return x_bnd


def _scanned(
    parent: nn.Module, kind: Callable[..., nn.Module], x_bnd: jax.Array, rates: np.ndarray, *, train: bool
) -> jax.Array:
    cfg: Model = parent.cfg  # pyright: ignore[reportAttributeAccessIssue]
    params = parent.variables["params"]
    layers = jax.tree.map(lambda *x: jnp.stack(x), *(params[f"block_{i}"] for i in range(cfg.depth)))
    draws = train and (cfg.dropout or cfg.stochastic_depth)
    keys = jax.random.split(parent.make_rng("dropout"), cfg.depth) if draws else None

    def body(x_bnd: jax.Array, layer: Any) -> tuple[Any, None]:
        params, rate, key = layer
        block = kind(cfg, rate if cfg.stochastic_depth else 0.0, parent=None)
        return block.apply(
            {"params": params}, x_bnd, train=train, rngs=None if key is None else {"dropout": key}
        ), None

    if cfg.remat != "none":
        body = jax.checkpoint(
            body, policy=POLICIES[cfg.remat], prevent_cse=False
        )  # a scan prevents it itself
    return jax.lax.scan(body, x_bnd, (layers, jnp.asarray(rates, jnp.float32), keys))[0]
