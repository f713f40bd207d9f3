"""The stack of blocks: written out or scanned, kept or computed again in the backward pass.

Files and checkpoints know the written-out form alone: block_0, block_1, ... A scan also takes all layers in
one array per parameter, `blocks`, with the layer as first axis. Training holds them so, because slices of
each layer in the program would make it grow with the depth; `stack` and `unstack` convert without loss.

Dims: l layers, b batch, n tokens, d width.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import kernels, vitals
from vit_jax.sections import Model

STACK, FIRST = "blocks", "block_0"
# Kept for the backward pass; all else is computed again. `dots`: products with weights, not attention.
POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def is_stacked(tree: Any) -> bool:
    """Whether `tree` is a dict of parameters, or of optimizer state, with stacked layers."""
    return isinstance(tree, dict) and STACK in tree


def stack(tree: Any) -> Any:
    """`tree` with block_0, block_1, ... of each dict in it as one `blocks` of arrays [l, ...]."""
    written_out = lambda x: isinstance(x, dict) and FIRST in x

    def convert(x: Any) -> Any:
        if not written_out(x):
            return x
        layers = [x[f"block_{i}"] for i in range(sum(name.startswith("block_") for name in x))]
        rest = {name: part for name, part in x.items() if not name.startswith("block_")}
        return rest | {STACK: jax.tree.map(lambda *x: jnp.stack(x), *layers)}

    return jax.tree.map(convert, tree, is_leaf=written_out)


def unstack(tree: Any, depth: int) -> Any:
    """The inverse of `stack`. Outside jit it is one small program for each shape, at any depth."""

    def convert(x: Any) -> Any:
        if not is_stacked(x):
            return x
        leaves, structure = jax.tree.flatten(x[STACK])
        layers = [_slices(leaf) for leaf in leaves]
        rest = {name: part for name, part in x.items() if name != STACK}
        return rest | {f"block_{i}": structure.unflatten([leaf[i] for leaf in layers]) for i in range(depth)}

    return jax.tree.map(convert, tree, is_leaf=is_stacked)


_slices = jax.jit(jnp.unstack)


def run_blocks(
    parent: nn.Module,
    kind: Callable[..., nn.Module],
    x_bnd: jax.Array,
    *given: jax.Array,
    train: bool,
    last: Callable[..., nn.Module] | None = None,
) -> jax.Array:
    """`x_bnd` through blocks `kind(cfg, drop_rate)`, submodules of `parent` (in its compact method).

    Each block also takes what is `given`.

    `last`, if given and nothing is scanned, makes the last block. Drop rates grow linearly to
    cfg.stochastic_depth (arXiv:1603.09382). A scan draws other dropout masks.
    """
    cfg, scan, remat = _fields(parent)
    rates = np.linspace(0.0, cfg.stochastic_depth, cfg.depth)
    if scan and not parent.is_initializing():
        return _scanned(parent, kind, x_bnd, rates, *given, train=train)
    call: Any = lambda block, x_bnd, *given: block(x_bnd, *given, train=train)
    if remat != "none":
        call = nn.remat(call, policy=POLICIES[remat])
    if train:  # equal blocks are traced once; not in inference, where callers capture what blocks compute
        call = nn.jit(call)
    for i, rate in enumerate(rates):
        make = last if last and i == cfg.depth - 1 else kind
        x_bnd = call(make(cfg, float(rate), name=f"block_{i}"), kernels.summed_once(x_bnd), *given)
    return x_bnd


def _scanned(
    parent: nn.Module,
    kind: Callable[..., nn.Module],
    x_bnd: jax.Array,
    rates: np.ndarray,
    *given: jax.Array,
    train: bool,
) -> jax.Array:
    # Not nn.scan: it owns its parameters, stacked under one name, where files, inference and the patterns of
    # `optim` know block_0, block_1, ... lax.scan takes them, and a drop rate per layer, as inputs.
    cfg, _, remat = _fields(parent)
    layers = stack(parent.variables["params"])[STACK]
    draws = train and (cfg.dropout or cfg.stochastic_depth)
    watched = vitals.wanted(parent)
    keys = jax.random.split(parent.make_rng("dropout"), cfg.depth) if draws else None

    def body(x_bnd: jax.Array, layer: Any) -> tuple[Any, Any]:
        params, rate, key = layer
        block = kind(cfg, rate if cfg.stochastic_depth else 0.0, parent=None)
        rngs = None if key is None else {"dropout": key}
        wanted: Any = [vitals.HEALTH] if watched else False
        out: Any = block.apply({"params": params}, x_bnd, *given, train=train, rngs=rngs, mutable=wanted)
        return (out[0], out[1][vitals.HEALTH]) if watched else (out, None)

    if remat != "none":  # a scan itself prevents that XLA merges the second computation with the first
        body = jax.checkpoint(body, policy=POLICIES[remat], prevent_cse=False)
    x_bnd, sown = jax.lax.scan(body, x_bnd, (layers, jnp.asarray(rates, jnp.float32), keys))
    if watched:
        parent.put_variable(vitals.HEALTH, STACK, sown)
    return x_bnd


def _fields(parent: Any) -> tuple[Model, bool, str]:
    return parent.cfg, parent.scan, parent.remat
