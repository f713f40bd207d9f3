"""Position embeddings of one grid at another, by named methods.

Every method is linear and separable: one matrix [new, old] per axis, built in float64, or the same weights in
a program for images of several grids. Dims: b batch, n positions, d width, h w old grid, y x new grid.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.fields import fail
from vit_jax.models.native import places


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


def resize_each(
    pos_1nd: jax.Array,
    old_hw: tuple[int, int],
    grid_b2: jax.Array,
    patches: int,
    *,
    method: str,
    slots: int = 0,
) -> jax.Array:
    """`resize` for images of several grids in one program: [b, slots + patches, d], float32.

    `grid_b2` has rows and columns of each; what is behind the last patch of an image means nothing.
    """
    row_bn, column_bn = places(grid_b2, patches)
    new_b2 = grid_b2.astype(jnp.float32)
    of_axis = lambda at_bn, axis: WEIGHTS[method](at_bn, new_b2[:, axis, None], float(old_hw[axis]), jnp)
    weight_bnhw = of_axis(row_bn, 0)[..., :, None] * of_axis(column_bn, 1)[..., None, :]
    weight_bnm = weight_bnhw.reshape(*row_bn.shape, -1)
    pos_bnd = jnp.einsum("bnm,md->bnd", weight_bnm, pos_1nd[0, slots:], precision="highest")
    stays_bsd = jnp.broadcast_to(pos_1nd[:, :slots], (len(pos_bnd), slots, pos_bnd.shape[-1]))
    return jnp.concatenate([stays_bsd, pos_bnd], axis=1)


def check_method(method: str) -> None:
    """Raise UserError unless `method` is one of the named ones."""
    if method not in WEIGHTS:
        fail(f"posemb_method={method!r} is not one of {', '.join(WEIGHTS)}")


def matrix(method: str, old: int, new: int) -> np.ndarray:
    """The weights [new, old], float64, by which `method` makes `new` cells of `old` ones."""
    return WEIGHTS[method](np.arange(new), np.float64(new), float(old), np)


# Each method gives the weights [..., old] of the old cells in cell `i` of `new`. These are arrays of numpy,
# for float64, or of jax, in a program, floats as all numbers here; `xp` is the library that they are of.


def official(i: Any, new: Any, old: float, xp: Any) -> Any:
    """Linear between first and last position, which stay where they are: scipy.ndimage.zoom(order=1).

    For a few sizes (28 to 22) scipy rounds the last position out of the grid and makes it zero: not so here.
    """
    at = i * ((old - 1) / xp.maximum(new - 1, 1))
    return _weigh(_linear(at[..., None] - _cells(at, old, xp), xp))


def bilinear(i: Any, new: Any, old: float, xp: Any) -> Any:
    """Linear between cell centres without antialiasing: torch's bilinear, tf.image.resize."""
    at = xp.clip(_centre(i, new, old), 0, old - 1)
    return _weigh(_linear(at[..., None] - _cells(at, old, xp), xp))


def bilinear_antialias(i: Any, new: Any, old: float, xp: Any) -> Any:
    """Linear, widened to shrink, normalised at edges: Pillow, SigLIP 2, jax.image."""
    return _weigh(_linear(_widened(i, new, old, xp), xp))


def bicubic(i: Any, new: Any, old: float, xp: Any) -> Any:
    """Cubic convolution with a = -0.75 without antialiasing, edges repeated: torch's bicubic."""
    at = _centre(i, new, old)
    first = xp.floor(at) - 1
    out = 0.0
    for tap in range(4):
        cell = xp.clip(first + tap, 0, old - 1)
        here = cell[..., None] == _cells(cell, old, xp)
        out = out + xp.where(here, _cubic(at - (first + tap), xp, a=-0.75)[..., None], 0.0)
    return out


def bicubic_antialias(i: Any, new: Any, old: float, xp: Any) -> Any:
    """Cubic convolution with a = -0.5, widened to shrink, normalised at edges: Pillow, timm, jax.image."""
    return _weigh(_cubic(_widened(i, new, old, xp), xp, a=-0.5))


WEIGHTS: dict[str, Callable[[Any, Any, float, Any], Any]] = {
    "official": official,
    "bicubic_antialias": bicubic_antialias,
    "bicubic": bicubic,
    "bilinear_antialias": bilinear_antialias,
    "bilinear": bilinear,
}


def _matrices(method: str, old_hw: tuple[int, int], new_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    (h, w), (y, x) = old_hw, new_hw
    return matrix(method, h, y), matrix(method, w, x)


def _centre(i: Any, new: Any, old: float) -> Any:
    """Where a new cell's centre lies, counted in old cells from the first one's centre."""
    return (i + 0.5) * (old / new) - 0.5


def _widened(i: Any, new: Any, old: float, xp: Any) -> Any:
    """Distances of a new cell's centre from those of old ones, in the wider cells of the two."""
    centre = _centre(i, new, old)
    distance = centre[..., None] - _cells(centre, old, xp)
    return distance / xp.maximum(old / new, 1.0)[..., None]


def _cells(at: Any, old: float, xp: Any) -> Any:
    """The numbers of the old cells, on an axis behind those of `at`."""
    return xp.arange(old).reshape(*(1,) * at.ndim, -1)


def _weigh(weights: Any) -> Any:
    return weights / weights.sum(axis=-1, keepdims=True)


def _linear(x: Any, xp: Any) -> Any:
    return xp.maximum(1 - xp.abs(x), 0)


def _cubic(x: Any, xp: Any, *, a: float) -> Any:
    """Keys' kernel (1981), of which a = -0.5 is the third-order accurate one."""
    x = xp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return xp.where(x <= 1, near, xp.where(x < 2, far, 0.0))
