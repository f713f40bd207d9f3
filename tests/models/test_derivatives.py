"""The derivatives that layers.py writes itself are those that autodiff finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import layers

# Float32 rounding of values of order one.
ATOL = 1e-6


@pytest.mark.parametrize(
    ("own", "known"),
    [
        (lambda x: layers.gelu(x, True), lambda x: jax.nn.gelu(x, approximate=True)),
        (lambda x: layers.gelu(x, False), lambda x: jax.nn.gelu(x, approximate=False)),
        (layers.softmax, jax.nn.softmax),
    ],
    ids=["gelu tanh", "gelu exact", "softmax"],
)
def test_own_derivatives_equal_autodiffs(own, known):
    x, dy = (jnp.asarray(a, jnp.float32) for a in np.random.default_rng(0).normal(size=(2, 5, 7)))
    (y, back), (wanted, wanted_back) = jax.vjp(own, x), jax.vjp(known, x)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=ATOL)
    np.testing.assert_allclose(back(dy)[0], wanted_back(dy)[0], rtol=0, atol=ATOL)
