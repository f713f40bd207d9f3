"""Every form that exists for a processor, each beside the plain form that it equals.

The platform that a program is compiled for chooses the form. The rest of `models/` calls the plain names:

    product(x, kernel)   x @ kernel
    gelu(x, tanh)        jax.nn.gelu(x, approximate=tanh) in float32
    softmax(s)           jax.nn.softmax(s)
    summed_once(x)       x

Forms with a derivative of their own cannot be differentiated forward (`jax.jvp`).
Dims: i inputs, o outputs, n rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata


@jax.custom_vjp
def product(x_ni: jax.Array, kernel_io: jax.Array) -> jax.Array:
    """x W. Its derivative chooses the form of xᵀ dy."""
    return x_ni @ kernel_io


def _product_forward(x_ni: jax.Array, kernel_io: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x_ni @ kernel_io, (x_ni, kernel_io)


def _product_backward(kept: tuple[jax.Array, jax.Array], dy_no: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_ni, kernel_io = kept
    d_kernel_io = jax.lax.platform_dependent(
        x_ni, dy_no, cpu=transposed_product_on_cpu, default=transposed_product
    )
    return dy_no @ kernel_io.T, d_kernel_io


product.defvjp(_product_forward, _product_backward)


def transposed_product(x_ni: jax.Array, dy_no: jax.Array) -> jax.Array:
    """xᵀ dy, the plain form."""
    return jax.lax.dot_general(x_ni, dy_no, (((0,), (0,)), ((), ())))


def transposed_product_on_cpu(x_ni: jax.Array, dy_no: jax.Array) -> jax.Array:
    """xᵀ dy, with the smaller operand transposed beforehand: XLA's best CPU kernels take plain products only.

    The barriers keep the transpositions out of the product (benchmarks/LOG.md).
    """
    apart = jax.lax.optimization_barrier
    if x_ni.shape[1] <= dy_no.shape[1]:
        return apart(x_ni.T) @ dy_no
    return apart(apart(dy_no.T) @ x_ni).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: jax.Array, tanh: bool) -> jax.Array:
    """GELU in float32, tanh form or exact, returned in x's dtype. arXiv:1606.08415.

    Its derivative keeps x alone for the backward pass, where autodiff keeps several float32 copies.
    """
    return jax.nn.gelu(x.astype(jnp.float32), approximate=tanh).astype(x.dtype)


def _gelu_forward(x: jax.Array, tanh: bool) -> tuple[jax.Array, jax.Array]:
    return gelu(x, tanh), x


def _gelu_backward(tanh: bool, x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    plain = functools.partial(jax.nn.gelu, approximate=tanh)
    _, dx = jax.jvp(plain, (x.astype(jnp.float32),), (dy.astype(jnp.float32),))
    return (dx.astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def softmax(s: jax.Array) -> jax.Array:
    """Softmax over the last axis. Its derivative needs the result p alone: p (dp - sum p dp)."""
    return jax.nn.softmax(s)


def _softmax_forward(s: jax.Array) -> tuple[jax.Array, jax.Array]:
    p = jax.nn.softmax(s)
    return p, p


def _softmax_backward(p: jax.Array, dp: jax.Array) -> tuple[jax.Array]:
    return (p * (dp - (p * dp).sum(axis=-1, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)


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
