"""timm loads what this package writes, and computes the same."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import timm_reference
from timm_reference import NAMES, STORED, case, logits

from vit_jax.models.build import build
from vit_jax.weights.save import write

# Float32 through 12 blocks on both sides, logits of order one.
ATOL = 1e-5


def ours(name: str, **numerics: Any) -> np.ndarray:
    model, params, images_bhwc = case(name)
    model = dataclasses.replace(model, **numerics)
    return np.asarray(jax.jit(build(model).apply)({"params": params}, images_bhwc))


LARGE = pytest.param("R26+S/32", "timm", marks=pytest.mark.slow)  # a second program of the largest


@pytest.mark.parametrize(
    ("name", "eps"), [*((name, "official") for name in NAMES), ("R+Ti/16", "timm"), LARGE]
)
def test_logits_are_timms_stored_ones(name, eps):
    stored = np.load(STORED)[f"{name}/{eps}_eps"]
    np.testing.assert_allclose(ours(name, stem_eps=eps), stored, rtol=0, atol=ATOL)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_timm_loads_an_official_file_and_agrees(name, tmp_path):
    pytest.importorskip("torch")
    timm_reference.stub_torchvision()
    pytest.importorskip("timm")
    model, params, images_bhwc = case(name)
    write(tmp_path / "w.npz", params, model, dialect="official")
    got = logits(tmp_path / "w.npz", name, images_bhwc, official_eps=True)
    np.testing.assert_allclose(ours(name), got, rtol=0, atol=ATOL)
