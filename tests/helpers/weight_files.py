"""What the tests of weight files share."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from paths import GOLDEN

from vit_jax.models.build import build
from vit_jax.sections import Model
from vit_jax.weights import layout
from vit_jax.weights.load import set_in


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def nest(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        set_in(tree, name, array)
    return tree


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


def images(name: str) -> np.ndarray:
    return np.load(GOLDEN / f"{name}.io.npz")["images"]
