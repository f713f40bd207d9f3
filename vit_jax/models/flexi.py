"""One patch embedding at any patch size: FlexiViT's resize by the pseudo-inverse. arXiv:2212.08013.

Let B resize a patch x of old pixels to new ones. The new kernel w' makes the old tokens of resized patches,
<B x, w'> = <x, w>, exactly where patches grow, and with the least mean square error over white noise where
they shrink: w' = (B^T)^+ w (section 3.4, eq. 3). B is separable, so its pseudo-inverse is too.
Dims: p q old pixels of a patch, y x new ones, c channels, d width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.posemb import matrix


def resize(kernel_pqcd: np.ndarray, size: int) -> np.ndarray:
    """The kernel [p, p, c, d] for patches of `size` pixels, [size, size, c, d], computed in float64."""
    if len(kernel_pqcd) == size:
        return kernel_pqcd
    matrix = _inverse(len(kernel_pqcd), size)
    resized = np.einsum("yp,xq,pqcd->yxcd", matrix, matrix, kernel_pqcd.astype(np.float64), optimize=True)
    return resized.astype(kernel_pqcd.dtype)


def resize_in_program(kernel_pqcd: jax.Array, size: int) -> jax.Array:
    """`resize` as part of a compiled program, in float32."""
    if len(kernel_pqcd) == size:
        return kernel_pqcd
    matrix = jnp.asarray(_inverse(len(kernel_pqcd), size), jnp.float32)
    return jnp.einsum("yp,xq,pqcd->yxcd", matrix, matrix, kernel_pqcd, precision="highest")


@functools.lru_cache(maxsize=64)
def _inverse(old: int, new: int) -> np.ndarray:
    """(B^T)^+ of one axis, [new, old]: bilinear without antialiasing, as big_vision resizes patches."""
    return np.linalg.pinv(matrix("bilinear", old, new).T)
