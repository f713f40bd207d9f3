"""Eight CPU devices and no silent rank promotion for every test; `strict_dtypes` where only our code runs."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def strict_dtypes():
    """No silent dtype promotion. Not for whole train steps: optax itself promotes."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def tiny_tree():
    """A config tree of a run of seconds: digits, 30 steps, one device's worth of work."""
    from vit_jax import config

    c = config.default()
    c.model.update(image_size=8, patch_size=4, width=16, depth=2, heads=2, mlp_width=32)
    c.data.update(name="digits", channels=1, augment="pad", pad_px=1, threads=2)
    c.optim.update(lr=1e-3, warmup_steps=5, weight_decay=0.01, clip_norm=1.0)
    c.train.update(steps=30, batch_size=32, eval_every=20, checkpoint_every=10, log_every=4)
    return c
