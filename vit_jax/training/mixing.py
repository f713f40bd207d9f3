"""Mixup and CutMix on the devices: each example meets the one before it in the batch.

Dims: b batch, h w pixels, c channels or classes.
"""

import jax
import jax.numpy as jnp

from vit_jax.sections import Loss


def mix(
    image_bhwc: jax.Array, target_bc: jax.Array, *, key: jax.Array, cfg: Loss
) -> tuple[jax.Array, jax.Array]:
    """Float images and targets of the batch after mixup or CutMix, drawn once a batch; a coin chooses."""
    if cfg.mixup and cfg.cutmix:
        coin, key = jax.random.split(key)
        first = jax.random.bernoulli(coin)
        a = mixup(image_bhwc, target_bc, key=key, alpha=cfg.mixup)
        b = cutmix(image_bhwc, target_bc, key=key, alpha=cfg.cutmix)
        return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])
    if cfg.mixup:
        return mixup(image_bhwc, target_bc, key=key, alpha=cfg.mixup)
    if cfg.cutmix:
        return cutmix(image_bhwc, target_bc, key=key, alpha=cfg.cutmix)
    return image_bhwc, target_bc


def mixup(
    image_bhwc: jax.Array, target_bc: jax.Array, *, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """x -> l x + (1 - l) x', l from Beta(alpha, alpha), its larger side. arXiv:1710.09412 eq. 1."""
    share = _share(key, alpha)
    blend = lambda x: share * x + (1.0 - share) * jnp.roll(x, 1, axis=0)
    return blend(image_bhwc), blend(target_bc)


def cutmix(
    image_bhwc: jax.Array, target_bc: jax.Array, *, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """A box of area 1 - l from x', cut off at the edges; labels by the area. arXiv:1905.04899 section 3.2."""
    of_share, of_centre = jax.random.split(key)
    side = jnp.sqrt(1.0 - _share(of_share, alpha))
    _, h, w, _ = image_bhwc.shape
    centre = jax.random.uniform(of_centre, (2,))
    row_h, column_w = (_between(centre[i], side, n) for i, n in enumerate((h, w)))
    box_hw = row_h[:, None] & column_w[None, :]
    kept = 1.0 - box_hw.astype(jnp.float32).mean()
    image_bhwc = jnp.where(box_hw[None, :, :, None], jnp.roll(image_bhwc, 1, axis=0), image_bhwc)
    return image_bhwc, kept * target_bc + (1.0 - kept) * jnp.roll(target_bc, 1, axis=0)


def _share(key: jax.Array, alpha: float) -> jax.Array:
    share = jax.random.beta(key, alpha, alpha)
    return jnp.maximum(share, 1.0 - share)


def _between(centre: jax.Array, side: jax.Array, size: int) -> jax.Array:
    """Which of `size` pixels have their middle less than side/2 from centre, both in parts of the whole."""
    middle = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    return jnp.abs(middle - centre) < side / 2
