"""A tiny model, and batches of noise for it."""

import numpy as np

from vit_jax.data.loader import Batch
from vit_jax.sections import Model

TINY = Model(image_size=8, patch_size=4, width=16, depth=2, heads=2, mlp_width=32, classes=5)


def make_batch(seed=0, rows=8):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (rows, 8, 8, 3), np.uint8)
    return Batch(image, rng.integers(0, 5, rows).astype(np.int32), np.ones(rows, np.float32))
