"""What the health of a run is read from within a forward pass: scalars, sown where a caller asks for them.

Whoever makes the collection `health` mutable gets them, float32, under the names of modules; other programs
do not compute them. Dims: b batch, n queries, m keys, h heads, k features per head, f hidden features.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

HEALTH = "health"  # the collection
DORMANT = 0.025  # of the mean activity of a layer's units: the tau of arXiv:2302.12902 section 3


def wanted(module: nn.Module) -> bool:
    """Whether the caller of the module's model asks for its health."""
    return module.is_mutable_collection(HEALTH) and not module.is_initializing()


def sow(module: nn.Module, **quantities: Callable[[], jax.Array]) -> None:
    """Keep each quantity under its name, if the caller asks for it. Nothing is learned by it."""
    if wanted(module):
        for name, quantity in quantities.items():
            module.put_variable(HEALTH, name, jax.lax.stop_gradient(quantity()))


def largest_logit(q_bnhk: jax.Array, k_bmhk: jax.Array) -> jax.Array:
    """The largest |q·k|/√k of any head, query and key: what grows where attention diverges.

    arXiv:2302.05442 section 2.
    """
    s_bhnm = jnp.einsum("bnhk,bmhk->bhnm", q_bnhk, k_bmhk, preferred_element_type=jnp.float32)
    return jnp.abs(s_bhnm).max() * q_bnhk.shape[-1] ** -0.5


def entropy(p_bhnm: jax.Array) -> jax.Array:
    """The mean entropy of the probabilities over that of uniform ones: 1 looks everywhere, 0 at one key.

    arXiv:2303.06296 section 3.
    """
    p_bhnm, keys = p_bhnm.astype(jnp.float32), p_bhnm.shape[-1]
    if keys == 1:
        return jnp.ones(())
    return -jax.scipy.special.xlogy(p_bhnm, p_bhnm).sum(axis=-1).mean() / math.log(keys)


def dormant(y_bnf: jax.Array) -> jax.Array:
    """The share of hidden units that are all but off for every token: mean |y| up to DORMANT of the layer's.

    arXiv:2302.12902 definition 3.1. Saturated GELU units are off, as dead ReLU units are.
    """
    activity_f = jnp.abs(y_bnf.astype(jnp.float32)).mean(axis=(0, 1))
    return (activity_f <= DORMANT * activity_f.mean()).astype(jnp.float32).mean()
