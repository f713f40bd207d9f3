"""Reading parameters: `vit_jax.models.module`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError

from vit_jax.models.module import Module


class Scale(Module):
    initialiser: nn.initializers.Initializer
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("scale", self.initialiser, self.shape, jnp.float32)


def test_an_initialiser_is_called_once_and_its_value_is_used() -> None:
    calls = []

    def twos(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        calls.append(shape)
        return jnp.full(shape, 2, dtype)

    layer, x = Scale(twos, (3,)), jnp.ones(3)
    params = layer.init(jax.random.key(0), x)
    assert calls == [(3,)]
    assert jax.tree.map(lambda a: a.tolist(), params) == {"params": {"scale": [2.0, 2.0, 2.0]}}
    assert layer.apply(params, x).tolist() == [2.0, 2.0, 2.0]  # pyright: ignore[reportAttributeAccessIssue]
    assert calls == [(3,)]


def test_a_parameter_of_another_shape_is_refused() -> None:
    layer = Scale(nn.initializers.ones, (3,))
    with pytest.raises(ScopeParamShapeError, match=r'"scale".*\(3,\).*\(1,\)'):
        layer.apply({"params": {"scale": jnp.ones(1)}}, jnp.ones(3))


def test_a_parameter_that_is_missing_is_refused_as_linen_does() -> None:
    with pytest.raises(ScopeParamNotFoundError, match="scale"):
        Scale(nn.initializers.ones, (3,)).apply({"params": {"other": jnp.ones(1)}}, jnp.ones(3))
