"""Each form made for a processor equals its plain form, in value and in derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import ROOT

from vit_jax.models import build, kernels
from vit_jax.sections import Model

# Float32 rounding of values of order one; sums of at most seven products.
ATOL = 1e-6
NORMAL = np.random.default_rng(0).normal(size=(4, 5, 7)).astype(np.float32)


@pytest.mark.parametrize(
    ("own", "plain"),
    [
        (lambda x: kernels.gelu(x, "tanh"), lambda x: jax.nn.gelu(x, approximate=True)),
        (lambda x: kernels.gelu(x, "exact"), lambda x: jax.nn.gelu(x, approximate=False)),
        (kernels.summed_once, lambda x: x),
    ],
    ids=["gelu tanh", "gelu exact", "summed once"],
)
def test_own_derivatives_equal_autodiffs(own, plain):
    x, dy = jnp.asarray(NORMAL[:2]), jnp.asarray(NORMAL[2:])
    (y, back), (wanted, wanted_back) = jax.vjp(own, x), jax.vjp(plain, x)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=ATOL)
    np.testing.assert_allclose(back(dy)[0], wanted_back(dy)[0], rtol=0, atol=ATOL)


def test_the_norm_and_its_derivatives_equal_autodiffs():
    x, dy, scale, bias = (
        3.0 + jnp.asarray(NORMAL[0]),
        jnp.asarray(NORMAL[1]),
        *map(jnp.asarray, NORMAL[2, :2]),
    )

    def plain(x, scale, bias):
        y = x - x.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + 1e-6)
        return y * scale[None] + bias[None]

    own = lambda *told: kernels.layer_norm(*told, 1e-6)
    (y, back), (wanted, wanted_back) = (jax.vjp(f, x, scale, bias) for f in (own, plain))
    np.testing.assert_array_equal(y, wanted)
    for a, b in zip(back(dy), wanted_back(dy), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=4 * ATOL)  # sums of up to seven terms of order one


@pytest.mark.parametrize("outputs", [3, 12], ids=["narrows", "widens"])
def test_the_product_and_both_its_derivatives_equal_the_plain_ones(outputs):
    x_ni = jnp.asarray(NORMAL[0])
    kernel_io, dy_no = (
        jnp.asarray(np.random.default_rng(seed).normal(size=(rows, outputs)).astype(np.float32))
        for seed, rows in ((1, 7), (2, 5))
    )
    got, back = jax.vjp(kernels.product, x_ni, kernel_io)
    wanted, wanted_back = jax.vjp(jnp.matmul, x_ni, kernel_io)
    np.testing.assert_array_equal(got, wanted)
    for a, b in zip(back(dy_no), wanted_back(dy_no), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=4 * ATOL)  # up to twelve products of order one


def test_a_bias_and_both_forms_of_its_derivative_equal_the_plain_one():
    x, bias = jnp.asarray(NORMAL[:3]), jnp.asarray(NORMAL[3, 0])
    y, back = jax.vjp(kernels.shifted, x, bias)
    np.testing.assert_array_equal(y, x + bias.reshape(1, 1, 7))
    dx, d_bias = back(y)
    np.testing.assert_array_equal(dx, y)
    for made in (d_bias, kernels.sum_of_rows(y), kernels.sum_of_rows_on_tpu(y)):
        np.testing.assert_allclose(made, y.sum(axis=(0, 1)), rtol=0, atol=4 * ATOL)  # sums of 15


@pytest.mark.parametrize("outputs", [3, 12])
def test_both_forms_of_the_transposed_product_are_the_same_numbers(outputs):
    x_ni, dy_no = jnp.asarray(NORMAL[0]), jnp.asarray(np.resize(NORMAL, (5, outputs)))
    wanted = kernels.transposed_product(x_ni, dy_no)
    np.testing.assert_allclose(
        kernels.transposed_product_on_cpu(x_ni, dy_no), wanted, rtol=0, atol=4 * ATOL
    )  # five products of order one


@pytest.mark.parametrize("name", ["layers", "stack", "vit", "mixer", "resnet"])
def test_forms_for_a_processor_stand_in_kernels_alone(name):
    text = (ROOT / "vit_jax" / "models" / f"{name}.py").read_text()
    words = ("custom_vjp", "custom_jvp", "platform_dependent", "optimization_barrier", "xla_metadata")
    assert not [word for word in words if word in text]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_forms_compute_the_same_and_are_differentiated_in_every_way(dtype):
    cfg = Model(image_size=8, patch_size=4, width=8, depth=2, heads=2, mlp_width=16, classes=3, dtype=dtype)
    model = build.build(cfg)
    params = build.init(model, jax.random.key(0), image_hw=(8, 8), channels=1)
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (8, 3))  # zeros at first: no gradient
    x, dx = (jnp.asarray(np.random.default_rng(i).normal(size=(2, 8, 8, 1)), jnp.float32) for i in range(2))
    logits = jax.jit(lambda x: model.apply({"params": params}, x))
    y, back = jax.vjp(logits, x)
    with kernels.plain_forms():
        assert "custom_vjp" not in str(jax.make_jaxpr(logits)(x))  # which was traced before, outside
        plain, tangent = jax.jvp(logits, (x,), (dx,))
        plain_back = jax.vjp(logits, x)[1]
    assert "custom_vjp" in str(jax.make_jaxpr(logits)(x))
    # Float32 sums in another order; in bfloat16, of eight bits, each rounding may come at another place.
    atol = 1e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(y, plain, atol=atol)
    np.testing.assert_allclose(back(y)[0], plain_back(y)[0], atol=4 * atol)
    # <y, J dx> = <J^T y, dx>
    np.testing.assert_allclose(
        jnp.vdot(y, tangent), jnp.vdot(plain_back(y)[0], dx), rtol=20 * atol, atol=atol
    )
