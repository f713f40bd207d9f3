"""Logits equal those of the published code, for small models that it wrote and ran (tests/golden)."""

import jax
import numpy as np
import pytest
from paths import GOLDEN

from vit_jax.models.build import build
from vit_jax.weights.adapt import Weights, Wish
from vit_jax.weights.load import read
from vit_jax.weights.save import write

CASES = sorted(p.name.removesuffix(".io.npz") for p in GOLDEN.glob("*.io.npz"))
# Float32 rounding over two blocks, with logits of order one; the last bits depend on the order of sums.
LOGITS_ATOL = 2e-6


def logits(weights: Weights, images: np.ndarray) -> np.ndarray:
    model = build(weights.model)
    return np.asarray(jax.jit(model.apply)({"params": weights.params}, images))


def load(name: str, *, resized: bool = False) -> tuple[Weights, np.ndarray, np.ndarray]:
    io = np.load(GOLDEN / f"{name}.io.npz")
    suffix = "_resized" if resized else ""
    images = io[f"images{suffix}"]
    return read(GOLDEN / f"{name}.npz", Wish(image_size=images.shape[1])), images, io[f"logits{suffix}"]


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_published_codes(name):
    weights, images, wanted = load(name)
    np.testing.assert_allclose(logits(weights, images), wanted, rtol=0, atol=LOGITS_ATOL)


@pytest.mark.parametrize("name", ["vit_token", "vit_gap"])
def test_logits_at_another_resolution_equal_the_published_codes(name):
    weights, images, wanted = load(name, resized=True)
    positions = np.load(GOLDEN / f"{name}.io.npz")["pos_embedding_resized"]
    # One rounding of float32 for values below one.
    np.testing.assert_allclose(weights.params["embed"]["positions"], positions, rtol=0, atol=1e-7)
    np.testing.assert_allclose(logits(weights, images), wanted, rtol=0, atol=LOGITS_ATOL)
    assert weights.report.resized[0].what == "4x4 to 6x6 by official"


HELD = [
    *(
        (name, d)
        for name in ("vit_token", "vit_gap", "vit_prelogits", "mixer")
        for d in ("official", "big_vision")
    ),
    *((name, "official") for name in ("hybrid_resnet", "hybrid_stem")),
    *((name, "big_vision") for name in CASES if name.startswith("bigvision")),
    *((name, "official") for name in ("bigvision_tok", "bigvision_scan")),
]


@pytest.mark.parametrize(("name", "dialect"), HELD)
def test_logits_stay_after_saving_and_loading(name, dialect, tmp_path):
    weights, images, wanted = load(name)
    write(tmp_path / "w.npz", weights.params, weights.model, dialect=dialect)
    again = read(tmp_path / "w.npz", Wish(image_size=images.shape[1]))
    np.testing.assert_allclose(logits(again, images), wanted, rtol=0, atol=LOGITS_ATOL)
