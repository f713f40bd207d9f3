"""Batches made ready for the loss on the devices: smoothed and weighted labels, mixup and CutMix.

Dims: b batch, h w pixels, c channels or classes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.patches import Patches
from vit_jax.sections import Loss
from vit_jax.training import losses


class Examples(NamedTuple):
    """A batch on its way into the loss: float32 pixels 0 to 255 [b, h, w, c], targets [b, c], weights [b].

    `pixels` are Patches of them where images keep their aspect, which are not mixed.

    `own` [b, c] is above 0 at the classes of the image that is the larger part, where it may have several.
    `class_weight` [b, c], in each row the same, or None where all classes weigh as much.
    """

    pixels: Any
    target: jax.Array
    weight: jax.Array
    own: jax.Array | None = None
    class_weight: jax.Array | None = None


def prepare(
    batch: Any,
    classes: int,
    *,
    key: jax.Array,
    cfg: Loss,
    class_weights: tuple[float, ...] = (),
    repeats: int = 1,
) -> Examples:
    """Smoothed labels, and images and labels mixed; `repeats` rows after one another are of one image."""
    label_b, weight_b = jnp.asarray(batch.label), jnp.asarray(batch.weight)
    target_bc = losses.smooth(label_b, classes, cfg.label_smoothing)
    if isinstance(batch.image, Patches):
        pixels = batch.image._replace(pixels=jnp.asarray(batch.image.pixels).astype(jnp.float32))
    else:
        pixels = jnp.asarray(batch.image).astype(jnp.float32)
        pixels, target_bc = mix(pixels, target_bc, key=key, cfg=cfg, by=repeats)
    examples = Examples(pixels, target_bc, weight_b, own=label_b if label_b.ndim == 2 else None)
    if not class_weights:
        return examples
    weight_c = _class_weights(jnp.asarray(class_weights, jnp.float32), label_b, weight_b, cfg)
    return examples._replace(class_weight=jnp.broadcast_to(weight_c, target_bc.shape))


def _class_weights(weight_c: jax.Array, label_b: jax.Array, weight_b: jax.Array, cfg: Loss) -> jax.Array:
    """Weights [c] with which the plain mean over a batch is the loss that torch computes of `weight_c`.

    CrossEntropyLoss(weight=) of labels, smoothed or not, divides the weighted losses by the sum of the
    labels' weights, as scikit-learn's class_weight does; of soft targets, which mixup and CutMix make, by the
    number of examples, as BCEWithLogitsLoss(weight=) does.
    """
    if cfg.name != "softmax" or cfg.mixup or cfg.cutmix:
        return weight_c
    sum_of_labels = (weight_c[label_b] * weight_b).sum()
    return weight_c * weight_b.sum() / jnp.maximum(sum_of_labels, jnp.finfo(jnp.float32).tiny)


def mix(
    image_bhwc: jax.Array, target_bc: jax.Array, *, key: jax.Array, cfg: Loss, by: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Float images and targets of the batch after mixup or CutMix, drawn once per batch; a coin chooses.

    Each example meets the one `by` rows before it in the batch: with repeated augmentation another image,
    not another copy of its own. A row so near is on the same device, or on the next one.
    """
    if cfg.mixup and cfg.cutmix:
        coin, key = jax.random.split(key)
        first = jax.random.bernoulli(coin)
        a = mixup(image_bhwc, target_bc, key=key, alpha=cfg.mixup, by=by)
        b = cutmix(image_bhwc, target_bc, key=key, alpha=cfg.cutmix, by=by)
        return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])
    if cfg.mixup:
        return mixup(image_bhwc, target_bc, key=key, alpha=cfg.mixup, by=by)
    if cfg.cutmix:
        return cutmix(image_bhwc, target_bc, key=key, alpha=cfg.cutmix, by=by)
    return image_bhwc, target_bc


def mixup(
    image_bhwc: jax.Array, target_bc: jax.Array, *, key: jax.Array, alpha: float, by: int = 1
) -> tuple[jax.Array, jax.Array]:
    """x -> l x + (1 - l) x', l from Beta(alpha, alpha), its larger side. arXiv:1710.09412 eq. 1."""
    share = _share(key, alpha)
    blend = lambda x: share * x + (1.0 - share) * jnp.roll(x, by, axis=0)
    return blend(image_bhwc), blend(target_bc)


def cutmix(
    image_bhwc: jax.Array, target_bc: jax.Array, *, key: jax.Array, alpha: float, by: int = 1
) -> tuple[jax.Array, jax.Array]:
    """A box of area 1 - l from x', cut off at the edges; labels by the area. arXiv:1905.04899 section 3.2."""
    of_share, of_centre = jax.random.split(key)
    side = jnp.sqrt(1.0 - _share(of_share, alpha))
    _, h, w, _ = image_bhwc.shape
    centre = jax.random.uniform(of_centre, (2,))
    row_h, column_w = (_between(centre[i], side, n) for i, n in enumerate((h, w)))
    box_hw = row_h[:, None] & column_w[None, :]
    kept = 1.0 - box_hw.astype(jnp.float32).mean()
    image_bhwc = jnp.where(box_hw[None, :, :, None], jnp.roll(image_bhwc, by, axis=0), image_bhwc)
    return image_bhwc, kept * target_bc + (1.0 - kept) * jnp.roll(target_bc, by, axis=0)


def _share(key: jax.Array, alpha: float) -> jax.Array:
    share = jax.random.beta(key, alpha, alpha)
    return jnp.maximum(share, 1.0 - share)


def _between(centre: jax.Array, side: jax.Array, size: int) -> jax.Array:
    """Which of `size` pixels have their middle less than side/2 from centre, both in parts of the whole."""
    middle = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    return jnp.abs(middle - centre) < side / 2
