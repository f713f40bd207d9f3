"""Attention weights of a model, and what is commonly made of them.

Dims: l layers, b batch, h heads, n queries, m keys, y x patch grid.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.build import build
from vit_jax.sections import Model


class Tokens(NamedTuple):
    """Where each kind of token lies in a sequence."""

    classes: slice  # class and distillation token
    registers: slice
    patches: slice


class Maps(NamedTuple):
    """Attention of a batch; `layers` only if all were asked for."""

    output: Any  # logits [b, c], or the features [b, d] of a model without a head
    last: jax.Array  # [b, h, n, m] of the last block
    pooling: jax.Array | None  # [b, h, m] of attention pooling's probe
    rollout: jax.Array  # [b, n, m]
    distance_lh: jax.Array  # mean over the batch, in pixels
    layers: jax.Array | None  # [l, b, h, n, m]


def tokens(cfg: Model) -> Tokens:
    """The token kinds of `cfg`. Raises UserError for a model without attention."""
    if cfg.family != "vit":
        raise UserError(f"model.family={cfg.family} has no attention: give a ViT or a hybrid")
    a = cfg.class_token + cfg.distill_token
    b = a + cfg.registers
    return Tokens(slice(0, a), slice(a, b), slice(b, b + cfg.grid_hw[0] * cfg.grid_hw[1]))


def capture(cfg: Model, params: Any, images_bhwc: jax.Array, *, every: bool) -> Maps:
    """Output and attention of normalised images; jit it, so that what is not returned is not kept.

    The weights are those that the model multiplies values with, in its own dtype. Raises UserError for a
    model without attention.
    """
    kinds = tokens(cfg)
    wanted = {"logits": bool(cfg.classes), "mutable": ["attention"]}
    output, state = build(cfg).apply({"params": params}, images_bhwc, **wanted)
    sown: Any = state["attention"]
    blocks = [sown[f"block_{i}"]["attention"]["p"][0].astype(jnp.float32) for i in range(cfg.depth)]
    pooling = sown["pool"]["map"]["attention"]["p"][0][:, :, 0] if cfg.pooling == "map" else None
    distance = [mean_distance(p[..., kinds.patches, kinds.patches], cfg) for p in blocks]
    return Maps(
        output=output,
        last=blocks[-1],
        pooling=pooling,
        rollout=rollout(blocks),
        distance_lh=jnp.stack(distance),
        layers=jnp.stack(blocks) if every else None,
    )


def rollout(layers: list[jax.Array]) -> jax.Array:
    """Product over layers of (mean over heads + identity) / 2, [b, n, m]. arXiv:2005.00928 section 3."""
    out_bnm = None
    for p_bhnm in layers:
        step_bnm = 0.5 * p_bhnm.mean(axis=1) + 0.5 * jnp.eye(p_bhnm.shape[-1])[None]
        out_bnm = step_bnm if out_bnm is None else jnp.einsum("bnk,bkm->bnm", step_bnm, out_bnm)
    if out_bnm is None:
        raise ValueError("rollout needs a layer")
    return out_bnm


def mean_distance(p_bhnm: jax.Array, cfg: Model) -> jax.Array:
    """Pixels from a patch to those it attends to, weighted by attention among patches: float32 [h].

    arXiv:2010.11929 appendix D.7; mean over queries and batch.
    """
    rows, columns = cfg.grid_hw
    y_n, x_n = np.divmod(np.arange(rows * columns), columns)
    d_nm = cfg.stride * np.hypot(y_n[:, None] - y_n[None], x_n[:, None] - x_n[None]).astype(np.float32)
    share_bhnm = p_bhnm / p_bhnm.sum(axis=-1, keepdims=True)
    return (share_bhnm * jnp.asarray(d_nm)[None, None]).sum(axis=-1).mean(axis=(0, 2))


def to_grid(row_m: np.ndarray, cfg: Model) -> np.ndarray:
    """The patches' part of attention over all tokens [..., m] as [..., y, x]."""
    patches = row_m[..., tokens(cfg).patches]
    return patches.reshape(*patches.shape[:-1], *cfg.grid_hw)


def readout(p_nm: Any, cfg: Model) -> Any:
    """What pooled features look at, [..., n, m] to [..., m]: the class token's row, or the patches' mean."""
    if cfg.pooling == "token":
        return p_nm[..., 0, :]
    return p_nm[..., tokens(cfg).patches, :].mean(axis=-2)


def looked_at(maps: Maps, cfg: Model) -> Any:
    """[h, m]: what the first image's pooled features look at in the last block, or by the pooling's probe."""
    return maps.pooling[0] if maps.pooling is not None else readout(maps.last[0], cfg)


def shares(row_m: np.ndarray, cfg: Model) -> dict[str, float]:
    """How much of attention [m] goes to each kind of token."""
    return {name: float(row_m[where].sum()) for name, where in zip(Tokens._fields, tokens(cfg), strict=True)}
