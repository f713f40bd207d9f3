"""Every form that exists for a processor, each beside the plain form that it equals.

The platform that a program is compiled for chooses the form. The rest of `models/` calls the plain names:

    product(x, kernel)   x @ kernel
    shifted(x, bias)     x + bias
    layer_norm(x, ...)   (x - mean x) / sqrt(var x + eps) * scale + bias in float32
    gelu(x, form)        GELUS[form](x) in float32
    summed_once(x)       x

Forms with a derivative of their own cannot be differentiated forward (`jax.jvp`, `jax.hessian`), and some
converters do not know them: inside `with plain_forms():` all are the plain ones, which compute the same.
Those of attention are in `attend.py`. Dims: i inputs, o outputs, r rows.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

# jit knows of it: what was compiled outside is not used inside.
only_plain = jax.make_user_context(False)


def plain_forms() -> contextlib.AbstractContextManager[None]:
    """While entered, the plain forms alone, without derivatives of their own."""
    return only_plain(True)


def or_plain(form: Any) -> Any:
    """`form`, whose body is the plain form, or inside `plain_forms` its body."""

    @functools.wraps(form)
    def call(*args: Any) -> Any:
        return form.fun(*args) if only_plain.value else form(*args)

    call.defvjp = form.defvjp  # pyright: ignore[reportAttributeAccessIssue]
    return call


@or_plain
@jax.custom_vjp
def product(x: jax.Array, kernel_io: jax.Array) -> jax.Array:
    """x W over the last axis of x [..., i]. Its derivative chooses the form of xᵀ dy."""
    return _times(x, kernel_io)


def _product_forward(x: jax.Array, kernel_io: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _times(x, kernel_io), (x, kernel_io)


def _product_backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel_io = kept
    d_kernel_io = jax.lax.platform_dependent(x, dy, cpu=transposed_product_on_cpu, default=transposed_product)
    return _times(dy, kernel_io.T), d_kernel_io


product.defvjp(_product_forward, _product_backward)


def _times(x: jax.Array, kernel_io: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, kernel_io, (((x.ndim - 1,), (0,)), ((), ())))


def transposed_product(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The sum of xᵀ dy over all rows of x [..., i] and dy [..., o], the plain form.

    Rows are not merged: TPUs keep the last two axes in tiles, and would copy both arrays.
    """
    rows = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))


def transposed_product_on_cpu(x: jax.Array, dy: jax.Array) -> jax.Array:
    """xᵀ dy, with the smaller operand transposed beforehand: XLA's best CPU kernels take plain products only.

    The barriers keep the transpositions out of the product (benchmarks/LOG.md).
    """
    apart = jax.lax.optimization_barrier
    x_ri, dy_ro = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if x_ri.shape[1] <= dy_ro.shape[1]:
        return apart(x_ri.T) @ dy_ro
    return apart(apart(dy_ro.T) @ x_ri).T


@or_plain
@jax.custom_vjp
def shifted(x: jax.Array, bias_o: jax.Array) -> jax.Array:
    """x + bias over the last axis of x [..., o]. Its derivative chooses the form of the sum over rows."""
    return x + _last(bias_o, x)


def _shifted_backward(_: None, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return dy, jax.lax.platform_dependent(dy, tpu=sum_of_rows_on_tpu, default=sum_of_rows)


shifted.defvjp(lambda x, bias_o: (shifted(x, bias_o), None), _shifted_backward)


def sum_of_rows(x: jax.Array) -> jax.Array:
    """The sum over all but the last axis of x [..., o], the plain form."""
    return x.sum(axis=tuple(range(x.ndim - 1)))


def sum_of_rows_on_tpu(x: jax.Array) -> jax.Array:
    """The sum as a product with ones, which costs a TPU a tenth. Eight columns of them: XLA undoes one."""
    rows = tuple(range(x.ndim - 1))
    ones = jnp.ones((*x.shape[:-1], 8), x.dtype)
    return jax.lax.dot_general(ones, x, ((rows, rows), ((), ())))[0]


@or_plain
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale_d: jax.Array, bias_d: jax.Array, eps: float) -> jax.Array:
    """(x - mean x) / sqrt(var x + eps) * scale + bias over the last axis, in float32. arXiv:1607.06450.

    Its derivative keeps x alone for the backward pass, where autodiff keeps three float32 copies.
    """
    y, _ = _standardised(x, eps)
    return (y * _last(scale_d, x) + _last(bias_d, x)).astype(x.dtype)


def _layer_norm_forward(x: jax.Array, scale_d: jax.Array, bias_d: jax.Array, eps: float) -> Any:
    return layer_norm(x, scale_d, bias_d, eps), (x, scale_d)


def _layer_norm_backward(eps: float, kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> Any:
    x, scale_d = kept
    y, per_std = _standardised(x, eps)
    dy = dy.astype(jnp.float32)
    g = dy * _last(scale_d, x)
    dx = per_std * (g - g.mean(axis=-1, keepdims=True) - y * (g * y).mean(axis=-1, keepdims=True))
    return dx.astype(x.dtype), sum_of_rows(dy * y), sum_of_rows(dy)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _standardised(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """x with mean 0 and variance 1 over the last axis, and 1 / its standard deviation, float32."""
    x = x.astype(jnp.float32)
    x -= x.mean(axis=-1, keepdims=True)
    per_std = jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps)
    return x * per_std, per_std


def _last(vector_d: jax.Array, x: jax.Array) -> jax.Array:
    """As wide as x: ranks are never promoted silently."""
    return vector_d.reshape((1,) * (x.ndim - 1) + (-1,))


GELUS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "exact": functools.partial(jax.nn.gelu, approximate=False),
    "tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@or_plain
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: jax.Array, form: str) -> jax.Array:
    """GELU in float32, exact, or its tanh or sigmoid form, returned in x's dtype. arXiv:1606.08415.

    Its derivative keeps x alone for the backward pass, where autodiff keeps several float32 copies.
    """
    return GELUS[form](x.astype(jnp.float32)).astype(x.dtype)


def _gelu_forward(x: jax.Array, form: str) -> tuple[jax.Array, jax.Array]:
    return gelu(x, form), x


def _gelu_backward(form: str, x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    _, dx = jax.jvp(GELUS[form], (x.astype(jnp.float32),), (dy.astype(jnp.float32),))
    return (dx.astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@or_plain
@jax.custom_vjp
def summed_once(x: jax.Array) -> jax.Array:
    """x, whose gradient on a CPU is computed once: the sum of what comes back from all later blocks.

    XLA's CPU compiler otherwise fuses that sum, term by term, into each of its three uses in every block:
    work and memory traffic that grow with the square of the depth (benchmarks/LOG.md).
    """
    return x


def _summed_once_backward(_: None, dx: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.platform_dependent(dx, cpu=_in_a_call, default=lambda dx: dx),)


summed_once.defvjp(lambda x: (x, None), _summed_once_backward)


def _in_a_call(x: jax.Array) -> jax.Array:
    """x through a function that XLA does not inline, so that nothing is fused across it."""
    with set_xla_metadata(inlineable="false"):
        return _negated_twice(x)


@jax.jit
def _negated_twice(x: jax.Array) -> jax.Array:
    # jax would remove a function that returns its argument.
    return jax.lax.neg(jax.lax.neg(x))
