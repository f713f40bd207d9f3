"""The stack of blocks: written out or scanned, kept or computed again in the backward pass.

Files and checkpoints know the written-out form alone: block_0, block_1, ... A scan also takes all layers in
one array a parameter, `blocks`, with the layer as first axis. Training holds them so, because slices of each
layer in the program would make it grow with the depth; `stack` and `unstack` convert without loss.

Dims: l layers, b batch, n tokens, d width.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from vit_jax.sections import Model

STACK, FIRST = "blocks", "block_0"
# What the backward pass finds kept; all else is computed again. `dots`: products with weights, not attention.
POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def is_stacked(tree: Any) -> bool:
    """Whether `tree` is a dict of parameters, or of what an optimizer keeps of each, with stacked layers."""
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
    if train:  # blocks that are alike are traced once; not in inference, where callers look into blocks
        call = nn.jit(call)
    for i, rate in enumerate(rates):
        make = last if last and i == cfg.depth - 1 else kind
        x_bnd = call(make(cfg, float(rate), name=f"block_{i}"), _summed_once(x_bnd))
    return x_bnd


@jax.custom_vjp
def _summed_once(x_bnd: jax.Array) -> jax.Array:
    """x, whose gradient is one array: the residual sum that comes back from all later blocks.

    On a CPU XLA otherwise fuses that sum, term by term, into each of its three uses in every block: work and
    memory traffic that grow with the square of the depth (benchmarks/LOG.md).
    """
    return x_bnd


def _materialised(_: None, dx_bnd: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.platform_dependent(dx_bnd, cpu=_in_a_call, default=lambda dx_bnd: dx_bnd),)


def _in_a_call(x: jax.Array) -> jax.Array:
    """x by way of a function that XLA does not inline, so that nothing is fused across it."""
    with set_xla_metadata(inlineable="false"):
        return _twice_negated(x)


@jax.jit
def _twice_negated(x: jax.Array) -> jax.Array:
    # jax would leave out a function that gives back its argument.
    return jax.lax.neg(jax.lax.neg(x))


_summed_once.defvjp(lambda x_bnd: (x_bnd, None), _materialised)


def _scanned(
    parent: nn.Module, kind: Callable[..., nn.Module], x_bnd: jax.Array, rates: np.ndarray, *, train: bool
) -> jax.Array:
    cfg: Model = parent.cfg  # pyright: ignore[reportAttributeAccessIssue]
    layers = stack(parent.variables["params"])[STACK]
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
