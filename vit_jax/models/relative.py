"""BEiT adds to attention's scores a number per head for where a key lies from a query. arXiv:2106.08254.

As in Swin (arXiv:2103.14030 eq. 4), with three numbers more where the class token is the query, the key, or
both. Dims: h heads, n m tokens, the first of them the class token, r numbers; grids are (rows, columns).
"""

import functools

import jax
import numpy as np


def count(grid_hw: tuple[int, int]) -> int:
    """How many numbers each head has for a grid: r."""
    h, w = grid_hw
    return (2 * h - 1) * (2 * w - 1) + 3


def bias(table_rh: jax.Array, grid_hw: tuple[int, int]) -> jax.Array:
    """What is added to each head's scores: [h, n, m]."""
    return table_rh[places(grid_hw)].transpose(2, 0, 1)


@functools.lru_cache(maxsize=64)
def places(grid_hw: tuple[int, int]) -> np.ndarray:
    """Which number of the table belongs to a query and a key: int32 [n, m]."""
    h, w = grid_hw
    y_n, x_n = np.mgrid[:h, :w].reshape(2, -1)
    down_nm, right_nm = (a[:, None] - a[None] for a in (y_n, x_n))
    found = np.empty((1 + h * w, 1 + h * w), np.int32)
    found[1:, 1:] = (down_nm + h - 1) * (2 * w - 1) + right_nm + w - 1
    found[0], found[:, 0], found[0, 0] = count(grid_hw) + np.array([-3, -2, -1])
    return found
