"""Every form that exists for a processor, each beside the plain form that it equals.

The platform that a program is compiled for chooses the form. The rest of `models/` calls the plain names:

    product(x, kernel)   x @ kernel
    gelu(x, tanh)        jax.nn.gelu(x, approximate=tanh) in float32
    attend(q, k, v)      p v and p = softmax(q kᵀ/√k)
    summed_once(x)       x

Forms with a derivative of their own cannot be differentiated forward (`jax.jvp`).
Dims: i inputs, o outputs, r rows; b batch, n queries, m keys, h heads, k features a head.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata


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
def attend(q_bnhk: jax.Array, k_bmhk: jax.Array, v_bmhk: jax.Array) -> tuple[jax.Array, jax.Array]:
    """p v [b, n, h, k] and p = softmax(q kᵀ/√k) [b, h, n, m], computed in float32. arXiv:1706.03762 eq. 1.

    The derivative of the softmax needs p alone, kept in the dtype of q: ds = p (dp - sum p dp).
    """
    return jax.lax.platform_dependent(q_bnhk, k_bmhk, v_bmhk, cpu=attended_on_cpu, default=attended)


def _attend_forward(q_bnhk: jax.Array, k_bmhk: jax.Array, v_bmhk: jax.Array) -> tuple[Any, Any]:
    y_bnhk, p_bhnm = attend(q_bnhk, k_bmhk, v_bmhk)
    return (y_bnhk, p_bhnm), (q_bnhk, k_bmhk, v_bmhk, p_bhnm)


def _attend_backward(kept: Any, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
    return jax.lax.platform_dependent(*kept, *given, cpu=attended_backward_on_cpu, default=attended_backward)


attend.defvjp(_attend_forward, _attend_backward)


def attended(q: jax.Array, k: jax.Array, v: jax.Array, order: str = "nh") -> tuple[jax.Array, jax.Array]:
    """`attend`, the plain form. `order` is that of tokens and heads in all arrays but p."""
    of_q, of_k = _axes(order)
    s_bhnm = jnp.einsum(f"{of_q},{of_k}->bhnm", q, k, preferred_element_type=jnp.float32)
    p_bhnm = jax.nn.softmax(s_bhnm * q.shape[-1] ** -0.5).astype(q.dtype)
    return jnp.einsum(f"bhnm,{of_k}->{of_q}", p_bhnm, v), p_bhnm


def attended_on_cpu(q_bnhk: jax.Array, k_bmhk: jax.Array, v_bmhk: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`attend`, heads before tokens: a CPU multiplies batches slowly in another order (benchmarks/LOG.md)."""
    y_bhnk, p_bhnm = attended(*map(_swapped, (q_bnhk, k_bmhk, v_bmhk)), order="hn")
    return _swapped(y_bhnk), p_bhnm


def attended_backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    p_bhnm: jax.Array,
    dy: jax.Array,
    dp_bhnm: jax.Array,
    order: str = "nh",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The derivatives by q, k and v from those by both results of `attend`, the plain form."""
    of_q, of_k = _axes(order)
    dv = jnp.einsum(f"bhnm,{of_q}->{of_k}", p_bhnm, dy)
    p_bhnm, dp_bhnm = p_bhnm.astype(jnp.float32), dp_bhnm.astype(jnp.float32)
    dp_bhnm += jnp.einsum(f"{of_q},{of_k}->bhnm", dy, v, preferred_element_type=jnp.float32)
    ds_bhnm = p_bhnm * (dp_bhnm - (p_bhnm * dp_bhnm).sum(axis=-1, keepdims=True))
    ds_bhnm = (ds_bhnm * q.shape[-1] ** -0.5).astype(q.dtype)
    dq = jnp.einsum(f"bhnm,{of_k}->{of_q}", ds_bhnm, k)
    return dq, jnp.einsum(f"bhnm,{of_q}->{of_k}", ds_bhnm, q), dv


def attended_backward_on_cpu(
    q_bnhk: jax.Array,
    k_bmhk: jax.Array,
    v_bmhk: jax.Array,
    p_bhnm: jax.Array,
    dy_bnhk: jax.Array,
    dp_bhnm: jax.Array,
) -> tuple[jax.Array, ...]:
    """`attended_backward`, heads before tokens."""
    q, k, v, dy = map(_swapped, (q_bnhk, k_bmhk, v_bmhk, dy_bnhk))
    return tuple(map(_swapped, attended_backward(q, k, v, p_bhnm, dy, dp_bhnm, order="hn")))


def _axes(order: str) -> tuple[str, str]:
    """The axes of queries and of keys, for einsum."""
    return f"b{order}k", f"b{order.replace('n', 'm')}k"


def _swapped(x: jax.Array) -> jax.Array:
    """Heads and tokens exchanged."""
    return x.transpose(0, 2, 1, 3)


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
