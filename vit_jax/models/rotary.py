"""Rotary positions of patches: pairs of features are turned by their positions. arXiv:2104.09864.

Half of a head's pairs turn with the row of a patch, half with its column, each pair at a speed of its own.
Tokens before the patches are not turned. Angles are made at the grid of the image, so no weights are resized.
Dims: m tokens, k features of a head, h w grid, q = k/4 pairs an axis.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import native


class Form(NamedTuple):
    """How a family counts positions, and which features make a pair."""

    base: float  # pair i of q turns base^(-i/q) times as fast as the first
    centred: bool = False  # positions from -1 to 1, times 2 pi; else counted in patches
    columns_first: bool = False  # the first pairs turn with the column
    offset: bool = False  # counted from the number of tokens before the patches
    halves: bool = False  # feature i is paired with i + k/2; else 2i with 2i + 1


FORMS = {
    "dinov3": Form(base=100.0, centred=True, halves=True),  # arXiv:2508.10104
    "eva02": Form(base=10_000.0),  # arXiv:2303.11331
    "pe": Form(base=10_000.0, columns_first=True, offset=True),  # arXiv:2504.13181
    "rope_vit": Form(base=100.0, columns_first=True),  # axial, arXiv:2403.13298
}


def turn(
    name: str, grid_hw: tuple[int, int], features: int, *, prefix: int, to: int
) -> Callable[[jax.Array], jax.Array]:
    """The function that turns queries or keys [b, n, h, k], the first n of `prefix` and grid_hw tokens.

    With `to`, positions are stretched to a grid of that side, as EVA-02 does at other resolutions.
    """
    form = FORMS[name]
    of_mk = table(form, grid_hw, features, prefix=prefix, to=to)
    return _turned(form, *(jnp.asarray(a_mk)[None, :, None] for a_mk in of_mk))


def turn_each(
    name: str, grid_b2: jax.Array, tokens: int, features: int, *, prefix: int, to: int
) -> Callable[[jax.Array], jax.Array]:
    """`turn` for images of several grids, `grid_b2` rows and columns, the same number of tokens each."""
    form, q = FORMS[name], features // 4
    speed_11q = jnp.asarray(form.base ** -(np.arange(q) / q), jnp.float32).reshape(1, 1, q)
    at = native.places(grid_b2, tokens - prefix)
    sides_b2 = grid_b2.astype(jnp.float32)
    y_bn, x_bn = (_position(form, at[axis], sides_b2[:, axis, None], prefix, to) for axis in (0, 1))
    axes = (x_bn, y_bn) if form.columns_first else (y_bn, x_bn)
    angles_bnk = jnp.concatenate([axis[..., None] * speed_11q for axis in axes], axis=-1)
    angles_bnk = jnp.tile(angles_bnk, 2) if form.halves else jnp.repeat(angles_bnk, 2, axis=-1)
    angles_bm1k = jnp.pad(angles_bnk, ((0, 0), (prefix, 0), (0, 0)))[:, :, None]
    return _turned(form, jnp.cos(angles_bm1k), jnp.sin(angles_bm1k))


def _turned(form: Form, cos_bm1k: jax.Array, sin_bm1k: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The function that turns the first n of m tokens by these angles, of one grid or of each image's."""

    def turned(x_bnhk: jax.Array) -> jax.Array:
        n, y_bnhk = x_bnhk.shape[1], x_bnhk.astype(jnp.float32)
        partner_bnhk = _partner(y_bnhk, form.halves)
        return (y_bnhk * cos_bm1k[:, :n] + partner_bnhk * sin_bm1k[:, :n]).astype(x_bnhk.dtype)

    return turned


def _partner(x: jax.Array, halves: bool) -> jax.Array:
    """(-b, a) of each pair (a, b) of features."""
    if halves:
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([-b, a], axis=-1)
    return jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)


@functools.lru_cache(maxsize=64)
def table(
    form: Form, grid_hw: tuple[int, int], features: int, *, prefix: int, to: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine [m, k] of the angle of each feature and token, float32."""
    q = features // 4
    speed_q = form.base ** -(np.arange(q) / q)
    axes = [_position(form, np.arange(side), side, prefix, to) for side in grid_hw]
    y_hw, x_hw = np.meshgrid(*axes, indexing="ij")
    first, second = (x_hw, y_hw) if form.columns_first else (y_hw, x_hw)
    angles = np.concatenate([np.outer(axis.ravel(), speed_q) for axis in (first, second)], axis=1)
    angles_mk = np.tile(angles, 2) if form.halves else np.repeat(angles, 2, axis=1)
    angles_mk = np.concatenate([np.zeros((prefix, features)), angles_mk])
    return np.cos(angles_mk).astype(np.float32), np.sin(angles_mk).astype(np.float32)


def _position(form: Form, i: Any, side: Any, prefix: int, to: int) -> Any:
    """Of row or column `i` of `side`."""
    if form.centred:
        return 2 * np.pi * (2 * (i + 0.5) / side - 1)
    return (i + (prefix if form.offset else 0)) * ((to or side) / side)
