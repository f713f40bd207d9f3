"""The stem's layers equal Flax's, however they are written."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import resnet
from vit_jax.sections import Model


@pytest.mark.parametrize("channels", [32, 96])
def test_group_norm_is_flaxs(channels):
    x_bhwc = 3 + 2 * jax.random.normal(jax.random.key(0), (3, 5, 7, channels))
    params = {"scale": jnp.linspace(0.5, 2, channels), "bias": jnp.linspace(-1, 1, channels)}
    ours = resnet.GroupNorm(Model()).apply({"params": params}, x_bhwc)
    stock = nn.GroupNorm(num_groups=32, epsilon=resnet.GROUP_NORM_EPS["official"], use_fast_variance=False)
    # float32 sums in another order: 7e-7 measured
    np.testing.assert_allclose(ours, stock.apply({"params": params}, x_bhwc), atol=5e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [6, 7])
def test_a_convolution_of_one_pixel_is_a_convolution(stride, side):
    x_bhwc = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    layer = resnet.StdConv(Model(), 4, size=1, stride=stride)
    params = layer.init(jax.random.key(1), x_bhwc)
    w_hwio = params["params"]["kernel"]
    over = {"axis": (0, 1, 2), "keepdims": True}
    w_hwio = (w_hwio - w_hwio.mean(**over)) / (w_hwio.std(**over) + resnet.STD_EPS)
    stock_bhwc = jax.lax.conv_general_dilated(
        x_bhwc, w_hwio, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    # float32 sums of three products: 2e-7 measured
    np.testing.assert_allclose(layer.apply(params, x_bhwc), stock_bhwc, atol=2e-6)
