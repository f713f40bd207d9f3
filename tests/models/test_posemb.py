"""Every named resize method equals its reference, on any grid, up and down."""

from typing import get_args

import jax
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paths import GOLDEN

from vit_jax.errors import UserError
from vit_jax.models import posemb
from vit_jax.sections import PosembMethod

# One rounding of float32 for values of order one; the references compute in float64 or float32.
ATOL = 1e-6
SIDES = st.integers(1, 20)
TORCH = np.load(GOLDEN / "torch_resize.npz")


def grid(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h * 100 + w).normal(size=(h, w, 3)).astype(np.float32)


def resize(grid_hwd: np.ndarray, new: tuple[int, int], method: str) -> np.ndarray:
    h, w, d = grid_hwd.shape
    out = posemb.resize(grid_hwd.reshape(1, h * w, d), (h, w), new, method=method)
    assert out.dtype == grid_hwd.dtype
    return out.reshape(*new, d)


@given(SIDES, SIDES, SIDES, SIDES)
@settings(max_examples=60, deadline=None)
def test_official_is_scipys_zoom(h, w, y, x):
    grid_hwd = grid(h, w)
    # mode="nearest" is for the sizes where the default one loses the last row: see the next test.
    wanted = scipy.ndimage.zoom(grid_hwd, (y / h, x / w, 1), order=1, mode="nearest")
    np.testing.assert_allclose(resize(grid_hwd, (y, x), "official"), wanted, rtol=0, atol=ATOL)


@given(st.integers(1, 32), st.integers(1, 32))
@example(28, 22)
@settings(max_examples=60, deadline=None)
def test_official_is_the_published_codes_own_call_on_squares(old, new):
    grid_hwd = grid(old, old)
    wanted = scipy.ndimage.zoom(grid_hwd, (new / old, new / old, 1), order=1)
    got = resize(grid_hwd, (new, new), "official")
    if new > 1 and (new - 1) * ((old - 1) / (new - 1)) > old - 1:  # scipy's own rounding: a row of zeros
        assert not np.any(wanted[-1])
        assert not np.any(wanted[:, -1])
        got, wanted = got[:-1, :-1], wanted[:-1, :-1]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("method", "jaxs", "antialias"),
    [
        ("bicubic_antialias", "cubic", True),
        ("bilinear", "linear", False),
        ("bilinear_antialias", "linear", True),
    ],
)
@given(h=SIDES, w=SIDES, y=SIDES, x=SIDES)
@settings(max_examples=6, deadline=None)  # jax.image compiles each anew
def test_a_method_is_jaxs(method, jaxs, antialias, h, w, y, x):
    grid_hwd = grid(h, w)
    with jax.enable_x64(True):
        wanted = jax.image.resize(grid_hwd.astype(np.float64), (y, x, 3), jaxs, antialias=antialias)
    np.testing.assert_allclose(resize(grid_hwd, (y, x), method), wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize("method", posemb.WEIGHTS)
@pytest.mark.parametrize("sizes", sorted({k.split("/")[0] for k in TORCH.files}))
def test_a_method_is_torchs(method, sizes):
    new = sizes.split("_")[1].split("x")
    got = resize(TORCH[f"{sizes}/grid"], (int(new[0]), int(new[1])), method)
    np.testing.assert_allclose(got, TORCH[f"{sizes}/{method}"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("method", posemb.WEIGHTS)
@given(h=SIDES, w=SIDES, y=SIDES, x=SIDES, slots=st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_an_equal_grid_stays_bit_for_bit_slots_always_and_constants_too(method, h, w, y, x, slots):
    pos_1nd = np.random.default_rng(0).normal(size=(1, slots + h * w, 4)).astype(np.float32)
    np.testing.assert_array_equal(posemb.resize(pos_1nd, (h, w), (h, w), method=method, slots=slots), pos_1nd)
    resized = posemb.resize(pos_1nd, (h, w), (y, x), method=method, slots=slots)
    assert resized.shape == (1, slots + y * x, 4)
    np.testing.assert_array_equal(resized[:, :slots], pos_1nd[:, :slots])
    flat = posemb.resize(np.ones((1, h * w, 1), np.float32), (h, w), (y, x), method=method)
    np.testing.assert_allclose(flat, 1, rtol=0, atol=ATOL)


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match="posemb_method='nearest' is not one of official"):
        posemb.check_method("nearest")


def test_the_methods_are_those_of_the_type():
    assert set(posemb.WEIGHTS) == set(get_args(PosembMethod))
