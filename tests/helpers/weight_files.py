"""What the tests of weight files share."""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from paths import GOLDEN

from vit_jax.models.build import build
from vit_jax.sections import Model
from vit_jax.weights import layout
from vit_jax.weights.adapt import Weights


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def nest(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    return unflatten_dict(flat, sep="/")


def trained_params(model: Model) -> dict[str, Any]:
    """Nested parameters of the size that training has, by numpy, from a seed for each name."""
    params = {}
    for name, shape in layout.shapes(model).items():
        fan_in = np.prod(shape[:-1]) if name.endswith("kernel") else 25
        if name.endswith(("query/kernel", "key/kernel", "value/kernel")):
            fan_in = shape[0]
        offset = 1.0 if name.endswith(("scale", "gamma")) else 0.0
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        params[name] = (offset + rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)
    return nest(params)


def random_params(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in layout.shapes(model).items()}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def logits(model: Model, params: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(build(model).apply)({"params": params}, images))


def outputs(weights: Weights, images_bhwc: np.ndarray) -> np.ndarray:
    """Logits, or the features that a head would see, through a head that is the identity."""
    model, params = weights.model, weights.params
    if not model.classes:
        one = {"distill_head": False} if model.distill_token else {}
        model = dataclasses.replace(model, classes=model.features, **one)
        head = {
            "kernel": np.eye(model.features, dtype=np.float32),
            "bias": np.zeros(model.features, np.float32),
        }
        params = params | {"head": head}
    return np.asarray(jax.jit(build(model).apply)({"params": params}, images_bhwc))


def images(name: str) -> np.ndarray:
    return np.load(GOLDEN / f"{name}.io.npz")["images"]
