"""MLP-Mixer. arXiv:2105.01601.

Dims: b batch, h w pixels, c channels or classes, n tokens, d width.
"""

import flax.linen as nn
import jax

from vit_jax.errors import UserError
from vit_jax.models import native
from vit_jax.models.layers import DropPath, Mlp, Norm
from vit_jax.models.stack import run_blocks
from vit_jax.models.vit import Embed, Pool, grid_of, head
from vit_jax.patches import Patches
from vit_jax.sections import Model


class Mixer(nn.Module):
    """Images to logits, or features, by MLPs over tokens and over features in turn, which fix the grid."""

    cfg: Model
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self, images_bhwc: jax.Array | Patches, *, train: bool = False, logits: bool = True
    ) -> jax.Array:
        """float32 images [b, h, w, c], normalised, to float32 logits [b, classes].

        Without `logits`, what the head would see: [b, d]. Raises UserError for logits without a head.
        With `train=True` and a nonzero rate, needs `rngs={"dropout": key}`. Raises UserError for images of
        another size than `cfg.image_size`.
        """
        cfg = self.cfg
        if isinstance(images_bhwc, Patches):
            raise UserError(native.unable(cfg))
        if (grid_hw := grid_of(cfg, images_bhwc, cfg.patch_size)) != cfg.grid_hw:
            (h, w), (y, x) = cfg.grid_hw, grid_hw
            raise UserError(
                f"a Mixer of {h}x{w} patches takes no images of {y}x{x}: give {cfg.image_size} pixels"
            )
        x_bnd = Embed(cfg, cfg.patch_size, name="embed")(images_bhwc)
        x_bnd = run_blocks(self, MixerBlock, x_bnd, train=train)
        x_bnd = Norm(cfg, name="norm")(x_bnd)
        x_bd = Pool(cfg, name="pool")(x_bnd, train=train)
        return head(cfg, "head")(x_bd) if logits else x_bd


class MixerBlock(nn.Module):
    """x + token_mlp(norm1(x)ᵀ)ᵀ, then x + mlp(norm2(x)). Stochastic depth as in the ViT's Block."""

    cfg: Model
    drop_rate: float | jax.Array

    @nn.compact
    def __call__(self, x_bnd: jax.Array, *, train: bool) -> jax.Array:
        cfg = self.cfg
        drop_path = lambda: DropPath(self.drop_rate, deterministic=not train)
        y_bdn = Norm(cfg, name="norm1")(x_bnd).swapaxes(1, 2)
        y_bdn = Mlp(cfg, cfg.token_width, name="token_mlp")(y_bdn, train=train)
        x_bnd = x_bnd + drop_path()(y_bdn.swapaxes(1, 2))
        y_bnd = Norm(cfg, name="norm2")(x_bnd)
        y_bnd = Mlp(cfg, cfg.mlp_width, name="mlp")(y_bnd, train=train)
        return x_bnd + drop_path()(y_bnd)
