"""The strictest JAX there is: eight CPU devices, no silent promotion of dtypes or ranks."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS") or "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def optax_dtypes():
    """Usual dtype promotion, for modules that take whole train steps: optax itself promotes."""
    with jax.numpy_dtype_promotion("standard"):
        yield
