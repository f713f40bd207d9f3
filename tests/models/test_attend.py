"""Attention in every form equals plain softmax attention, and so do its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import attend as forms
from vit_jax.models.attend import attend
from vit_jax.training import mesh as meshes

ATOL = 1e-6  # float32 sums of up to seven products of order one


def normal(seed, *shapes, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def plain(q, k, v):
    p = jax.nn.softmax(jnp.einsum("bnhk,bmhk->bhnm", q, k) * q.shape[-1] ** -0.5)
    return jnp.einsum("bhnm,bmhk->bnhk", p, v), p


def test_both_orders_equal_the_plain_form():
    # Three queries, five keys, two heads.
    q, k, v, *dy_dp = normal(3, (2, 3, 2, 7), (2, 5, 2, 7), (2, 5, 2, 7), (2, 3, 2, 7), (2, 2, 3, 5))
    ours, back = jax.vjp(attend, q, k, v)
    wanted, wanted_back = jax.vjp(plain, q, k, v)
    kept = (q, k, v, ours[1], *dy_dp)
    for made in (ours, forms.attended(q, k, v), forms.attended_on_cpu(q, k, v)):
        for a, b in zip(made, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=ATOL)
    backward = (forms.attended_backward, forms.attended_backward_on_cpu)
    for made in (back(tuple(dy_dp)), *(form(*kept) for form in backward)):
        for a, b in zip(made, wanted_back(tuple(dy_dp)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=4 * ATOL)  # sums of sums of products of order one


@pytest.mark.parametrize("used", [0, 1])
def test_either_result_alone_may_be_used(used):
    q, k, v = normal(4, *[(2, 3, 2, 7)] * 3)
    ours, wanted = (
        jax.grad(lambda *x, f=f: jnp.square(f(*x)[used]).sum(), argnums=(0, 1, 2))(q, k, v)
        for f in (attend, plain)
    )
    for a, b in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=4 * ATOL)


# 197 tokens are no multiple of any tile; four heads a tile, two, one.
@pytest.mark.parametrize(("tokens", "heads", "width"), [(197, 4, 64), (50, 4, 32), (17, 2, 128)])
def test_the_kernel_for_tpus_equals_the_plain_form(tokens, heads, width):
    q, k, v, dy = normal(5, *[(2, tokens, heads, width)] * 4)
    wanted, back = jax.vjp(lambda *x: plain(*x)[0], q, k, v)
    (y,) = forms.fused(forms._forward_kernel, (q, k, v), results=1, interpret=True)
    made = forms.fused(forms._backward_kernel, (q, k, v, dy), results=3, interpret=True)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=4 * ATOL)
    for a, b in zip(made, back(dy), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=20 * ATOL)  # sums over up to 197 tokens of such sums


def test_the_kernel_works_on_the_examples_of_each_device():
    arrays, mesh = normal(6, *[(8, 17, 2, 64)] * 3), meshes.make("any", 2)
    assert mesh.size == 8
    with jax.set_mesh(mesh):
        rows = meshes.batch_sharding(mesh)
        run = jax.jit(lambda *x: forms.fused(forms._forward_kernel, x, results=1, interpret=True)[0])
        program = run.lower(*jax.device_put(arrays, rows)).compile()
        y = program(*jax.device_put(arrays, rows))
    assert y.sharding.is_equivalent_to(rows, y.ndim)
    assert "all-gather" not in program.as_text()
    np.testing.assert_allclose(y, plain(*arrays)[0], rtol=0, atol=4 * ATOL)


def test_in_bfloat16_the_kernel_errs_no_more_than_the_plain_form():
    q, k, v, dy = normal(7, *[(2, 50, 4, 64)] * 4, dtype=jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in (q, k, v, dy)]
    wanted, back = jax.vjp(lambda *x: plain(*x)[0], *wide[:3])
    wanted = (wanted, *back(wide[3]))
    y_p = forms.attended(q, k, v)
    stock = (y_p[0], *forms.attended_backward(q, k, v, y_p[1], dy, jnp.zeros_like(y_p[1])))
    kernel = (
        *forms.fused(forms._forward_kernel, (q, k, v), results=1, interpret=True),
        *forms.fused(forms._backward_kernel, (q, k, v, dy), results=3, interpret=True),
    )
    error = lambda made, right: float(jnp.linalg.norm(made.astype(jnp.float32) - right))
    for made, plainly, right in zip(kernel, stock, wanted, strict=True):
        # Both round p and ds once to bfloat16; the kernel has p in float32 in the backward pass.
        assert error(made, right) <= 1.02 * error(plainly, right)
        assert error(made, right) <= 2.0**-7 * float(jnp.linalg.norm(right))


@pytest.mark.parametrize(
    ("shape", "dtype", "fits"),
    [
        ((2, 197, 12, 64), jnp.bfloat16, True),
        ((2, 197, 12, 64), jnp.float32, False),
        ((2, 197, 3, 64), jnp.bfloat16, False),  # Ti/16: one and a half tiles
        ((2, 257, 16, 80), jnp.bfloat16, False),  # H/14: heads across tiles
        ((2, 1025, 12, 64), jnp.bfloat16, False),  # scores that do not fit
    ],
)
def test_where_the_kernel_does_not_fit_the_plain_form_serves(shape, dtype, fits):
    x = jax.ShapeDtypeStruct(shape, dtype)
    assert forms._kernel_fits(x, x) == fits
    one = jax.ShapeDtypeStruct((shape[0], 1, *shape[2:]), dtype)
    assert not forms._kernel_fits(one, x)
    assert ("pallas_call" in str(jax.make_jaxpr(forms.attended_on_tpu)(x, x, x))) == fits
