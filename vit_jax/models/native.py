"""What the model needs to know of images of their own aspect: which tokens are real, and where they are.

Dims: b batch, n patches, m tokens with those before the patches, d width.
"""

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError
from vit_jax.patches import Patches
from vit_jax.sections import Model


def grid_of(cfg: Model, patches: Patches, patch_size: int) -> jax.Array:
    """Rows and columns of the patches of each image, int32 [b, 2]; a row without an image has one patch.

    Raises UserError for a model that takes images of one grid alone, or patches of another size.
    """
    if why := unable(cfg):
        raise UserError(why)
    if patches.pixels.shape[2:4] != (patch_size, patch_size):
        h, w = patches.pixels.shape[2:4]
        raise UserError(f"patches of {h}x{w} pixels are not those of {patch_size} that the model takes")
    return jnp.maximum(patches.grid, 1)


def unable(cfg: Model) -> str:
    """Why the model takes no images of their own aspect; empty if it does."""
    mixer = "model.family=mixer" if cfg.family == "mixer" else ""
    fixed = "model.relative_bias=True" if cfg.relative_bias else ""
    what = mixer or fixed or (f"model.stem_width={cfg.stem_width}" if cfg.stem_width else "")
    return what and f"{what} takes no images of their own aspect: give it images of one size"


def real(grid_b2: jax.Array, tokens: int, prefix: int) -> jax.Array:
    """Which tokens, of which the first `prefix` are before the patches, are no padding: bool [b, m]."""
    return jnp.arange(tokens)[None] < prefix + grid_b2.prod(axis=1, keepdims=True)


def places(grid_b2: jax.Array, patches: int) -> tuple[jax.Array, jax.Array]:
    """Row and column, float32 [b, n] each, of the first `patches` patches of images of such grids.

    Padding is where the last patch is: no number of it is beyond any table, or not finite.
    """
    last_b1 = grid_b2.prod(axis=1, keepdims=True) - 1
    at_bn = jnp.minimum(jnp.arange(patches)[None], last_b1)
    row_bn, column_bn = jnp.divmod(at_bn, grid_b2[:, 1, None])
    return row_bn.astype(jnp.float32), column_bn.astype(jnp.float32)


def mean(x_bnd: jax.Array, grid_b2: jax.Array | None) -> jax.Array:
    """The mean of the patches, [b, d], in float32; with grids, of those that are no padding."""
    if grid_b2 is None:
        return x_bnd.mean(axis=1, dtype=jnp.float32)
    real_bn = real(grid_b2, x_bnd.shape[1], 0)
    sum_bd = jnp.where(real_bn[..., None], x_bnd, 0).sum(axis=1, dtype=jnp.float32)
    return sum_bd / grid_b2.prod(axis=1, keepdims=True).astype(jnp.float32)
