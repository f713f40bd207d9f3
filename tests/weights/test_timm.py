"""timm loads what this package writes, and computes the same."""

import jax
import numpy as np
import pytest
import timm_reference
from timm_reference import NAMES, STORED, case, logits

from vit_jax.models.build import build
from vit_jax.weights.save import write

# Float32 through 12 blocks on both sides, logits of order one.
ATOL = 1e-5


def ours(name: str) -> np.ndarray:
    model, params, images_bhwc = case(name)
    return np.asarray(jax.jit(build(model).apply)({"params": params}, images_bhwc))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_timms_stored_ones(name):
    stored = np.load(STORED)
    got = ours(name)
    np.testing.assert_allclose(got, stored[f"{name}/official_eps"], rtol=0, atol=ATOL)
    # timm's own epsilons are part of the difference for hybrids, and only for them.
    np.testing.assert_allclose(
        got, stored[f"{name}/timm_eps"], rtol=0, atol=ATOL if name == "Ti/16" else 1e-4
    )


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
