"""Position embeddings of one grid at another, by named methods.

Every method is linear and separable: one matrix [new, old] an axis, built in float64.
Dims: n positions, d width, h w old grid, y x new grid.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.fields import fail


def resize(
    pos_1nd: np.ndarray,
    old_hw: tuple[int, int],
    new_hw: tuple[int, int],
    *,
    method: str,
    slots: int = 0,
) -> np.ndarray:
    """Positions [1, slots + h*w, d] as [1, slots + y*x, d]; the first `slots` and an equal grid stay.

    Raises UserError for an unknown method.
    """
    check_method(method)
    if old_hw == new_hw:
        return pos_1nd
    grid_hwd = pos_1nd[0, slots:].reshape(*old_hw, -1).astype(np.float64)
    rows_yh, columns_xw = _matrices(method, old_hw, new_hw)
    grid_yxd = np.einsum("yh,xw,hwd->yxd", rows_yh, columns_xw, grid_hwd, optimize=True)
    grid_1nd = grid_yxd.reshape(1, new_hw[0] * new_hw[1], -1).astype(pos_1nd.dtype)
    return np.concatenate([pos_1nd[:, :slots], grid_1nd], axis=1)


def resize_in_program(
    pos_1nd: jax.Array, old_hw: tuple[int, int], new_hw: tuple[int, int], *, method: str, slots: int = 0
) -> jax.Array:
    """`resize` as part of a compiled program, in float32, for images of another grid than is stored."""
    if old_hw == new_hw:
        return pos_1nd
    rows_yh, columns_xw = (jnp.asarray(m, jnp.float32) for m in _matrices(method, old_hw, new_hw))
    grid_hwd = pos_1nd[0, slots:].reshape(*old_hw, -1)
    # Not in the bfloat16 that a TPU multiplies in by default: positions are to be those of `resize`.
    grid_yxd = jnp.einsum("yh,xw,hwd->yxd", rows_yh, columns_xw, grid_hwd, precision="highest")
    return jnp.concatenate([pos_1nd[:, :slots], grid_yxd.reshape(1, new_hw[0] * new_hw[1], -1)], axis=1)


def check_method(method: str) -> None:
    """Raise UserError unless `method` is one of the named ones."""
    if method not in MATRICES:
        fail(f"posemb_method={method!r} is not one of {', '.join(MATRICES)}")


def official(old: int, new: int) -> np.ndarray:
    """Linear between first and last position, which stay where they are: scipy.ndimage.zoom(order=1).

    For a few sizes (28 to 22) scipy rounds the last position out of the grid and makes it zero: not so here.
    """
    at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    return _weigh(np.maximum(1 - np.abs(at[:, None] - np.arange(old)[None, :]), 0))


def bilinear(old: int, new: int) -> np.ndarray:
    """Linear between cell centres without antialiasing: torch's bilinear, tf.image.resize."""
    at = np.clip(_centres(old, new), 0, old - 1)
    return _weigh(np.maximum(1 - np.abs(at[:, None] - np.arange(old)[None, :]), 0))


def bicubic(old: int, new: int) -> np.ndarray:
    """Cubic convolution with a = -0.75 without antialiasing, edges repeated: torch's bicubic."""
    at = _centres(old, new)
    first = np.floor(at).astype(int) - 1
    out = np.zeros((new, old))
    for tap in range(4):
        weight = _cubic(at - (first + tap), a=-0.75)
        np.add.at(out, (np.arange(new), np.clip(first + tap, 0, old - 1)), weight)
    return out


def bicubic_antialias(old: int, new: int) -> np.ndarray:
    """Cubic convolution with a = -0.5, widened to shrink, normalised at edges: Pillow, timm, jax.image."""
    scale = max(old / new, 1.0)
    distance = (_centres(old, new)[:, None] - np.arange(old)[None, :]) / scale
    return _weigh(_cubic(distance, a=-0.5))


MATRICES: dict[str, Callable[[int, int], np.ndarray]] = {
    "official": official,
    "bicubic_antialias": bicubic_antialias,
    "bicubic": bicubic,
    "bilinear": bilinear,
}


def _matrices(method: str, old_hw: tuple[int, int], new_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    (h, w), (y, x) = old_hw, new_hw
    return MATRICES[method](h, y), MATRICES[method](w, x)


def _centres(old: int, new: int) -> np.ndarray:
    """Where the new cells' centres lie, counted in old cells from the first one's centre."""
    return (np.arange(new) + 0.5) * (old / new) - 0.5


def _weigh(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray, *, a: float) -> np.ndarray:
    """Keys' kernel (1981), of which a = -0.5 is the third-order accurate one."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
