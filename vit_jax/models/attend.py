"""Attention in the form for each processor, all equal to the plain one, `attended`.

The platform that a program is compiled for chooses: plain products in the order of tokens and heads that it
is fastest in, or on a TPU a kernel that never writes the probabilities to memory.
Dims: b batch, n queries, m keys, h heads, k features per head.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType, PartitionSpec

from vit_jax.models.kernels import only_plain, or_plain

TILE = 128  # lanes of a TPU's registers, and the width of its products
MOST_TOKENS = 640  # scores of a head beside a TPU's core: at 577, of 384 px, 9 of 16 MiB


@or_plain
@jax.custom_vjp
def attend(q_bnhk: jax.Array, k_bmhk: jax.Array, v_bmhk: jax.Array) -> tuple[jax.Array, jax.Array]:
    """p v [b, n, h, k] and p = softmax(q kᵀ/√k) [b, h, n, m], computed in float32. arXiv:1706.03762 eq. 1.

    The derivative of the softmax needs p alone, kept in the dtype of q: ds = p (dp - sum p dp).
    """
    if only_plain.value:
        return attended(q_bnhk, k_bmhk, v_bmhk)
    forms: dict[str, Any] = {"cpu": attended_on_cpu, "tpu": attended_on_tpu, "default": attended}
    return jax.lax.platform_dependent(q_bnhk, k_bmhk, v_bmhk, **forms)


def _attend_forward(*primals: Any) -> tuple[Any, Any]:
    q_bnhk, k_bmhk, v_bmhk = (primal.value for primal in primals)
    y_bnhk, p_bhnm = attend(q_bnhk, k_bmhk, v_bmhk)
    return (y_bnhk, p_bhnm), (q_bnhk, k_bmhk, v_bmhk, p_bhnm)


def _attend_backward(kept: Any, given: tuple[Any, Any]) -> tuple[jax.Array, ...]:
    forms: dict[str, Any] = {"cpu": attended_backward_on_cpu, "default": attended_backward}
    if isinstance(given[1], SymbolicZero):  # nothing is learned by the probabilities themselves
        forms["tpu"] = attended_backward_on_tpu
    return jax.lax.platform_dependent(*kept, *map(_made, given), **forms)


def _made(x: Any) -> jax.Array:
    return jnp.zeros_like(cast(Any, x)) if isinstance(x, SymbolicZero) else x


attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


@or_plain
@jax.custom_vjp
def attend_real(
    q_bnhk: jax.Array, k_bmhk: jax.Array, v_bmhk: jax.Array, real_bm: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`attend` to the keys that are real, of which each example has some; p is exactly 0 at all others."""
    if only_plain.value:
        return attended(q_bnhk, k_bmhk, v_bmhk, real_bm)
    forms: dict[str, Any] = {"cpu": attended_on_cpu, "default": attended}
    return jax.lax.platform_dependent(q_bnhk, k_bmhk, v_bmhk, real_bm, **forms)


def _attend_real_forward(*primals: jax.Array) -> tuple[Any, Any]:
    y_bnhk, p_bhnm = attend_real(*primals)
    return (y_bnhk, p_bhnm), (*primals[:3], p_bhnm)


def _attend_real_backward(kept: Any, given: tuple[Any, Any]) -> tuple[Any, ...]:
    forms: dict[str, Any] = {"cpu": attended_backward_on_cpu, "default": attended_backward}
    return *jax.lax.platform_dependent(*kept, *given, **forms), None


attend_real.defvjp(_attend_real_forward, _attend_real_backward)


def attended(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    real_bm: jax.Array | None = None,
    order: str = "nh",
    bias_hnm: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`attend`, or `attend_real`, the plain form. `order` is that of tokens and heads in all arrays but p.

    `bias_hnm` is added to q kᵀ/√k; it has no other form.
    """
    of_q, of_k = _axes(order)
    s_bhnm = jnp.einsum(f"{of_q},{of_k}->bhnm", q, k, preferred_element_type=jnp.float32)
    if real_bm is not None:
        s_bhnm = jnp.where(real_bm[:, None, None], s_bhnm, -jnp.inf)
    s_bhnm *= q.shape[-1] ** -0.5
    p_bhnm = jax.nn.softmax(s_bhnm if bias_hnm is None else s_bhnm + bias_hnm[None]).astype(q.dtype)
    return jnp.einsum(f"bhnm,{of_k}->{of_q}", p_bhnm, v), p_bhnm


def attended_on_cpu(
    q_bnhk: jax.Array, k_bmhk: jax.Array, v_bmhk: jax.Array, real_bm: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """`attended`, heads before tokens: a CPU is slow at batches in another order (benchmarks/LOG.md)."""
    q, k, v = map(_swapped, (q_bnhk, k_bmhk, v_bmhk))
    y_bhnk, p_bhnm = attended(q, k, v, real_bm, order="hn")
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


def attended_on_tpu(q_bnhk: jax.Array, k_bmhk: jax.Array, v_bmhk: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`attend`, y by a kernel where one fits. Where p is not asked for, the compiler leaves that out."""
    y_bnhk, p_bhnm = attended(q_bnhk, k_bmhk, v_bmhk)
    if _kernel_fits(q_bnhk, k_bmhk):
        (y_bnhk,) = fused(_forward_kernel, (q_bnhk, k_bmhk, v_bmhk), results=1)
    return y_bnhk, p_bhnm


def attended_backward_on_tpu(
    q_bnhk: jax.Array,
    k_bmhk: jax.Array,
    v_bmhk: jax.Array,
    p_bhnm: jax.Array,
    dy_bnhk: jax.Array,
    dp_bhnm: jax.Array,
) -> tuple[jax.Array, ...]:
    """`attended_backward` for dp = 0, by a kernel where one fits, which computes p again."""
    if _kernel_fits(q_bnhk, k_bmhk):
        return fused(_backward_kernel, (q_bnhk, k_bmhk, v_bmhk, dy_bnhk), results=3)
    return attended_backward(q_bnhk, k_bmhk, v_bmhk, p_bhnm, dy_bnhk, dp_bhnm)


def _kernel_fits(q_bnhk: jax.Array, k_bmhk: jax.Array) -> bool:
    """Whether heads fill tiles, tokens attend to themselves, and each device has whole examples."""
    b, n, h, k = q_bnhk.shape
    tiles = TILE % k == 0 and (h * k) % TILE == 0 and q_bnhk.dtype == jnp.bfloat16
    whole = b % max(jax.sharding.get_abstract_mesh().size, 1) == 0
    return tiles and whole and n <= MOST_TOKENS and q_bnhk.shape == k_bmhk.shape


def fused(
    kernel: Any, arrays_bnhk: tuple[jax.Array, ...], *, results: int, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """A kernel over tiles of heads of one example after another, on the examples that each device has.

    All arrays and results are [b, n, h, k] and have one dtype. With `interpret` it runs anywhere, slowly.
    """
    from jax.experimental import pallas as pl  # 0.2 s, and only needed here
    from jax.experimental.pallas import tpu as pltpu

    b, n, h, k = arrays_bnhk[0].shape

    def run(*arrays_bnd: jax.Array) -> list[jax.Array]:
        tile = pl.BlockSpec((1, n, TILE), lambda example, heads: (example, 0, heads))
        like = jax.ShapeDtypeStruct(arrays_bnd[0].shape, arrays_bnd[0].dtype)
        return pl.pallas_call(
            functools.partial(kernel, head_width=k),
            grid=(len(arrays_bnd[0]), h * k // TILE),
            in_specs=[tile] * len(arrays_bnd),
            out_specs=[tile] * results,
            out_shape=[like] * results,
            cost_estimate=_cost(pl, len(arrays_bnd) + results, (len(arrays_bnd[0]), n, h, k)),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
            interpret=interpret,
        )(*arrays_bnd)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and all(kind == AxisType.Auto for kind in mesh.axis_types):
        rows = PartitionSpec(mesh.axis_names)  # no compiler splits a kernel by itself
        run = jax.shard_map(run, in_specs=rows, out_specs=rows, check_vma=False)
    return tuple(y.reshape(b, n, h, k) for y in run(*(x.reshape(b, n, h * k) for x in arrays_bnhk)))


def _cost(pl: Any, arrays: int, shape_bnhk: tuple[int, ...]) -> Any:
    """The cost estimate of a kernel for the compiler: operations of its products, of whole tiles, and bytes.

    There are two products of a head forward, with four arrays, and five backward, with seven.
    """
    b, n, h, k = shape_bnhk
    tokens = -(-n // TILE) * TILE
    return pl.CostEstimate(
        flops=(arrays - 2) * 2 * b * h * tokens * tokens * TILE,
        transcendentals=b * h * n * n,
        bytes_accessed=arrays * 2 * b * n * h * k,
    )


def _forward_kernel(q_ref: Any, k_ref: Any, v_ref: Any, y_ref: Any, *, head_width: int) -> None:
    q, k, v = q_ref[0], k_ref[0], v_ref[0]
    y = jnp.zeros(q.shape, jnp.float32)
    for alone in _heads(head_width):
        s_nm = _times(alone(q), k, (1, 1)) * head_width**-0.5
        e_nm = jnp.exp(s_nm - s_nm.max(axis=1, keepdims=True))
        p_nm = e_nm / e_nm.sum(axis=1, keepdims=True)
        y += _times(p_nm.astype(q.dtype), alone(v), (1, 0))
    y_ref[0] = y.astype(q.dtype)


def _backward_kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, dy_ref: Any, dq_ref: Any, dk_ref: Any, dv_ref: Any, *, head_width: int
) -> None:
    # Keys before queries: two of the three last products take their operands as they are.
    q, k, v, dy = q_ref[0], k_ref[0], v_ref[0], dy_ref[0]
    dq, dk, dv = (jnp.zeros(q.shape, jnp.float32) for _ in range(3))
    for alone in _heads(head_width):
        s_mn = _times(k, alone(q), (1, 1)) * head_width**-0.5
        e_mn = jnp.exp(s_mn - s_mn.max(axis=0, keepdims=True))
        p_mn = e_mn / e_mn.sum(axis=0, keepdims=True)
        dp_mn = _times(v, alone(dy), (1, 1))
        ds_mn = p_mn * (dp_mn - (p_mn * dp_mn).sum(axis=0, keepdims=True))
        ds_mn = (ds_mn * head_width**-0.5).astype(q.dtype)
        dv += _times(p_mn.astype(q.dtype), alone(dy), (1, 0))
        dk += _times(ds_mn, alone(q), (1, 0))
        dq += _times(ds_mn, alone(k), (0, 0))
    for ref, x in ((dq_ref, dq), (dk_ref, dk), (dv_ref, dv)):
        ref[0] = x.astype(q.dtype)


def _heads(head_width: int) -> list[Any]:
    """For each head of a tile, the function that sets all other heads to 0.

    A product over all lanes is then that of one head, and costs a TPU as much as one of its lanes alone.
    """

    def alone(first: int, x_nl: jax.Array) -> jax.Array:
        lane_1l = jax.lax.broadcasted_iota(jnp.int32, (1, TILE), 1)
        return jnp.where((lane_1l >= first) & (lane_1l < first + head_width), x_nl, jnp.zeros_like(x_nl))

    return [functools.partial(alone, first) for first in range(0, TILE, head_width)]


def _times(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """The product in float32 over axis `over[0]` of a and `over[1]` of b."""
    axes = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
