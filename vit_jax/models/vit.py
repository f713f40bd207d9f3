"""The Vision Transformer. arXiv:2010.11929.

Dims: b batch, h w pixels or grid, c channels or classes, n tokens, d width, p features before the head.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import flexi, native, posemb
from vit_jax.models.layers import Block, MapPool, Norm, affine
from vit_jax.models.module import Module
from vit_jax.models.resnet import Stem
from vit_jax.models.stack import run_blocks
from vit_jax.patches import Patches
from vit_jax.sections import Model

TOKEN_STD = 0.02  # of learned position embeddings, as in the published code
SINCOS_BASE = 10_000.0  # as in the Transformer, arXiv:1706.03762


class ViT(nn.Module):
    """Images to logits, or to features. `scan` and `remat` are those of `sections.Train`.

    `patch_size`, if not 0, is used in place of that of `cfg`, from the same parameters (arXiv:2212.08013):
    `model.clone(patch_size=8).apply(...)`.
    """

    cfg: Model
    scan: bool = False
    remat: str = "none"
    patch_size: int = 0

    @nn.compact
    def __call__(
        self, images: jax.Array | Patches, *, train: bool = False, logits: bool = True
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """float32 images [b, h, w, c], or Patches of them, normalised, to float32 logits [b, classes].

        Any h and w of whole patches will do: learned positions, stored for `cfg.image_size`, are resized by
        `cfg.posemb_method`. Without `logits`, what the head would see: [b, p]. Raises UserError for logits
        without a head, and for pixels that make no whole patches.
        With `train=True` and a nonzero rate, needs `rngs={"dropout": key}`. With `cfg.distill_token`,
        training gives both heads' logits, (class, distillation), inference their mean (arXiv:2012.12877).
        """
        cfg = self.cfg
        patch_size = self.patch_size or cfg.patch_size
        given, grid_hw = (), (0, 0)
        if isinstance(images, Patches):
            given = (native.grid_of(cfg, images, patch_size),)
            images = images._replace(grid=given[0])
        else:
            grid_hw = grid_of(cfg, images, patch_size)
        x_bnd = Embed(cfg, patch_size, name="embed")(images)
        x_bnd = nn.Dropout(cfg.dropout, deterministic=not train)(x_bnd)
        block = functools.partial(Block, grid_hw=grid_hw)
        last = functools.partial(block, first=self._read_by_heads())
        x_bnd = run_blocks(self, block, x_bnd, *given, train=train, last=last)
        if cfg.final_norm == "tokens":
            x_bnd = Norm(cfg, name="norm")(x_bnd)
        x_bp = Pool(cfg, name="pool")(x_bnd, *given, train=train)
        if not logits:
            return x_bp
        logits_bc = head(cfg, "head")(x_bp)
        if not cfg.heads_distill:
            return logits_bc
        distill_bc = head(cfg, "head_distill")(x_bnd[:, 1])
        return (logits_bc, distill_bc) if train else (logits_bc + distill_bc) / 2

    def _read_by_heads(self) -> int | None:
        # Where heads read the class (and distillation) token alone, the last block computes no other, unless
        # the caller captures outputs or attention of whole blocks.
        captured = any(map(self.is_mutable_collection, ("intermediates", "attention")))
        return None if self.cfg.pooling != "token" or captured else 1 + self.cfg.distill_token


class Embed(Module):
    """Images to tokens [class, distillation, registers, patches]: stem, patch embedding, positions.

    Positions are those of the patches, and of class and distillation token where `posemb_class_slot` says so;
    registers have none (arXiv:2309.16588). `patch_size` may be another than that of `cfg`.
    """

    cfg: Model
    patch_size: int

    @nn.compact
    def __call__(self, images: jax.Array | Patches) -> jax.Array:
        cfg = self.cfg
        if isinstance(images, Patches):
            x_bnd, grid = Patch(cfg, self.patch_size, name="patch")(images.pixels), images.grid
        else:
            x_bhwc = Stem(cfg, name="stem")(images) if cfg.stem_width else images
            x_bhwd = Patch(cfg, self.patch_size, name="patch")(x_bhwc)
            b, h, w, d = x_bhwd.shape
            x_bnd, grid = x_bhwd.reshape(b, h * w, d), (h, w)
        add = functools.partial(self._add_positions, patches=x_bnd.shape[1], grid=grid)
        covers_class = cfg.posemb == "learned" and cfg.class_token and cfg.posemb_class_slot
        if not covers_class:
            x_bnd = add(x_bnd)
        prefix = []
        if cfg.class_token:
            prefix.append(self._tokens("class_token", 1, nn.initializers.zeros, x_bnd))
        if cfg.distill_token:
            prefix.append(self._tokens("distill_token", 1, nn.initializers.normal(TOKEN_STD), x_bnd))
        if prefix:
            x_bnd = jnp.concatenate([*prefix, x_bnd], axis=1)
        if covers_class:
            x_bnd = add(x_bnd)
        if cfg.registers:
            registers_bnd = self._tokens("registers", cfg.registers, nn.initializers.normal(TOKEN_STD), x_bnd)
            k = len(prefix)
            x_bnd = jnp.concatenate([x_bnd[:, :k], registers_bnd, x_bnd[:, k:]], axis=1)
        return Norm(cfg, name="norm")(x_bnd) if cfg.embed_norm else x_bnd

    def _tokens(
        self, name: str, n: int, start: nn.initializers.Initializer, like_bnd: jax.Array
    ) -> jax.Array:
        b, _, d = like_bnd.shape
        tokens_1nd = self.param(name, start, (1, n, d), jnp.float32)
        return jnp.broadcast_to(tokens_1nd, (b, n, d)).astype(like_bnd.dtype)

    def _add_positions(self, x_bnd: jax.Array, patches: int, grid: tuple[int, int] | jax.Array) -> jax.Array:
        cfg = self.cfg
        if cfg.posemb == "none":
            return x_bnd
        if cfg.posemb == "sincos2d":
            pos_bnd = (
                jnp.asarray(sincos2d(grid, cfg.width))
                if isinstance(grid, tuple)
                else sincos2d_each(grid, patches, cfg.width)
            )
        else:
            slots, (h, w) = x_bnd.shape[1] - patches, cfg.grid_hw
            shape = (1, slots + h * w, x_bnd.shape[-1])
            stored_1nd = self.param("positions", nn.initializers.normal(TOKEN_STD), shape, jnp.float32)
            how = {"method": cfg.posemb_method, "slots": slots}
            if isinstance(grid, tuple):
                pos_bnd = posemb.resize_in_program(stored_1nd, (h, w), grid, **how)
            else:
                pos_bnd = posemb.resize_each(stored_1nd, (h, w), grid, patches, **how)
        return x_bnd + pos_bnd.astype(x_bnd.dtype)


class Patch(Module):
    """x W + a of each p x p patch, [b, h, w, c] to [b, h/p, w/p, d]: nn.Conv's parameters and initial values.

    Of patches that are cut, [b, n, p, p, c] to [b, n, d]. One matrix product. W is stored for the patches of
    `cfg`, and resized to those of `patch_size`.
    """

    cfg: Model
    patch_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d, p, (b, *sides, c) = self.cfg.width, self.patch_size, x.shape
        shape = (self.cfg.patch_size, self.cfg.patch_size, c, d)
        stored_ppcd = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        kernel_ppcd = flexi.resize_in_program(stored_ppcd, p)
        biased = self.cfg.patch_bias
        bias_d = self.param("bias", nn.initializers.zeros, (d,), jnp.float32) if biased else None
        if x.ndim == 5:
            return affine(
                self.cfg, x.reshape(b, sides[0], p * p * c), kernel_ppcd.reshape(p * p * c, d), bias_d
            )
        h, w = (side // p for side in sides)
        x_bhpwpc = x[:, : h * p, : w * p].reshape(b, h, p, w, p, c)
        x_bhwi = x_bhpwpc.swapaxes(2, 3).reshape(b, h, w, p * p * c)
        return affine(self.cfg, x_bhwi, kernel_ppcd.reshape(p * p * c, d), bias_d)


class Pool(nn.Module):
    """Tokens to the features that the head sees: [b, n, d] to [b, cfg.features].

    Of images with `grid_b2` rows and columns each, without their padding.
    """

    cfg: Model

    @nn.compact
    def __call__(self, x_bnd: jax.Array, grid_b2: jax.Array | None = None, *, train: bool) -> jax.Array:
        cfg = self.cfg
        patches_bnd = x_bnd[:, cfg.prefix :] if cfg.prefix else x_bnd
        mean = lambda: native.mean(patches_bnd, grid_b2).astype(x_bnd.dtype)
        if cfg.pooling == "token":
            x_bd = x_bnd[:, 0]
        elif cfg.pooling == "gap":
            x_bd = mean()
        elif cfg.pooling == "token_gap":
            x_bd = jnp.concatenate([x_bnd[:, 0], mean()], axis=1)
        else:
            x_bd = MapPool(cfg, name="map")(x_bnd, grid_b2, train=train)
        if cfg.final_norm == "pooled":
            x_bd = Norm(cfg, name="norm")(x_bd)
        if cfg.pre_logits_form == "linear":
            x_bd = nn.Dense(cfg.pre_logits, use_bias=False, dtype=cfg.dtype, name="pre_logits")(x_bd)
        elif cfg.pre_logits:
            x_bd = jnp.tanh(nn.Dense(cfg.pre_logits, dtype=cfg.dtype, name="pre_logits")(x_bd))
        return x_bd


def grid_of(cfg: Model, images_bhwc: jax.Array, patch_size: int) -> tuple[int, int]:
    """(rows, columns) of the patches of images. Raises UserError for a size that the model does not take."""
    (height, width), stride = images_bhwc.shape[1:3], cfg.stride // cfg.patch_size * patch_size
    if height < stride or width < stride or height % stride or width % stride:
        raise UserError(
            f"images of {height}x{width} pixels are not whole patches of {stride} pixels: resize them"
        )
    grid_hw = height // stride, width // stride
    if cfg.relative_bias and grid_hw != cfg.grid_hw:
        rows, columns = cfg.grid_hw
        raise UserError(
            f"images of {height}x{width} pixels do not fit model.relative_bias=True, which was learned for "
            f"{rows}x{columns} patches: resize them"
        )
    return grid_hw


def head(cfg: Model, name: str) -> Callable[[jax.Array], jax.Array]:
    """A zero-initialised Dense layer to float32 logits, on features cast to float32.

    Raises UserError for a model without classes.
    """
    if not cfg.classes:
        raise UserError("the model has no head, so it gives no logits: ask for its features, or set classes")
    layer = nn.Dense(
        cfg.classes,
        dtype=jnp.float32,
        kernel_init=nn.initializers.zeros,
        bias_init=nn.initializers.constant(cfg.head_bias),
        name=name,
    )
    return lambda x_bp: layer(x_bp.astype(jnp.float32))


def sincos2d(grid_hw: tuple[int, int], width: int) -> np.ndarray:
    """Fixed position embedding [1, h*w, width], float32: that of columns, then that of rows, a half each."""
    y_1n, x_1n = np.mgrid[: grid_hw[0], : grid_hw[1]].reshape(2, 1, -1)
    of_nd = _sincos(max(grid_hw), width // 2)
    return np.concatenate([of_nd[x_1n], of_nd[y_1n]], axis=-1)


def sincos2d_each(grid_b2: jax.Array, patches: int, width: int) -> jax.Array:
    """`sincos2d` of the patches of images of several grids, [b, n, width], float32."""
    row_bn, column_bn = native.places(grid_b2, patches)
    of_nd = jnp.asarray(_sincos(patches, width // 2))
    return jnp.concatenate([of_nd[at_bn.astype(jnp.int32)] for at_bn in (column_bn, row_bn)], axis=-1)


def _sincos(places: int, width: int) -> np.ndarray:
    """Sines, then cosines, of the first `places` rows or columns: [places, width], float32.

    As in MoCo v3 (arXiv:2104.02057) and big_vision: frequencies SINCOS_BASE^-(i / (width/2 - 1)).
    """
    omega = SINCOS_BASE ** -(np.arange(width // 2) / max(width // 2 - 1, 1))
    angle = np.outer(np.arange(places), omega)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
