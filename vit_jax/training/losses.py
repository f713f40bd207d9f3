"""Losses an example. Dims: b batch, c classes."""

import jax
import jax.numpy as jnp


def softmax_cross_entropy(logits_bc: jax.Array, label_b: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], float32 [b]."""
    log_p_bc = jax.nn.log_softmax(logits_bc.astype(jnp.float32))
    return -jnp.take_along_axis(log_p_bc, label_b[:, None], axis=1)[:, 0]


def in_top(logits_bc: jax.Array, label_b: jax.Array, k: int) -> jax.Array:
    """1.0 where fewer than k other classes score at least as high as the label, float32 [b].

    Ties count against the model: constant logits are right for no k below the class count.
    """
    score_b1 = jnp.take_along_axis(logits_bc, label_b[:, None], axis=1)
    others_b = (logits_bc >= score_b1).sum(axis=1) - 1
    return (others_b < k).astype(jnp.float32)
