"""The convolutional stem of the hybrids: a ResNet v1 with weight-standardised convolutions and GroupNorm.

Big Transfer's residual units (arXiv:1912.11370) in post-activation form, as in the published hybrid code.
Dims: b batch, h w feature map, c channels, g groups of channels, i o channels in and out.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import kernels
from vit_jax.models.module import Module
from vit_jax.sections import Model

GROUPS = 32  # flax's default, as in the published code
GROUP_NORM_EPS = {"official": 1e-6, "timm": 1e-5}  # the defaults of flax and torch, as in the two codes
STD_EPS = 1e-5  # of the published code: added to the standard deviation itself, not to the variance
VARIANCE_EPS = 1e-8  # of timm


class Stem(nn.Module):
    """Root convolution and max pooling, by 4, then stages of residual units, each but the first by 2."""

    cfg: Model

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """[b, h, w, channels] to [b, h/s, w/s, stem_width * 2^(stages+1)], or stem_width without stages."""
        cfg = self.cfg
        x_bhwc = StdConv(cfg, cfg.stem_width, size=7, stride=2, name="conv_root")(x_bhwc)
        x_bhwc = jax.nn.relu(GroupNorm(cfg, name="norm_root")(x_bhwc))
        x_bhwc = nn.max_pool(x_bhwc, window_shape=(3, 3), strides=(2, 2), padding="SAME")
        for i, units in enumerate(cfg.stem_blocks):
            for j in range(units):
                stride = 2 if i and not j else 1
                unit = ResidualUnit(cfg, cfg.stem_width * 2**i, stride, name=f"stage{i + 1}_unit{j + 1}")
                x_bhwc = unit(x_bhwc)
        return x_bhwc


class ResidualUnit(nn.Module):
    """relu(shortcut(x) + norm3(conv3(relu(norm2(conv2(relu(norm1(conv1(x))))))))), 4 * features wide."""

    cfg: Model
    features: int
    stride: int

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        cfg, out = self.cfg, self.features * 4
        shortcut_bhwc = x_bhwc
        if x_bhwc.shape[-1] != out or self.stride != 1:
            shortcut_bhwc = StdConv(cfg, out, size=1, stride=self.stride, name="conv_proj")(x_bhwc)
            shortcut_bhwc = GroupNorm(cfg, name="norm_proj")(shortcut_bhwc)
        y_bhwc = StdConv(cfg, self.features, size=1, stride=1, name="conv1")(x_bhwc)
        y_bhwc = jax.nn.relu(GroupNorm(cfg, name="norm1")(y_bhwc))
        y_bhwc = StdConv(cfg, self.features, size=3, stride=self.stride, name="conv2")(y_bhwc)
        y_bhwc = jax.nn.relu(GroupNorm(cfg, name="norm2")(y_bhwc))
        y_bhwc = StdConv(cfg, out, size=1, stride=1, name="conv3")(y_bhwc)
        # A zero scale makes every fresh unit the identity.
        y_bhwc = GroupNorm(cfg, scale_init=nn.initializers.zeros, name="norm3")(y_bhwc)
        return jax.nn.relu(shortcut_bhwc + y_bhwc)


class StdConv(Module):
    """Convolution by (w - mean) / (std + 1e-5), a filter at a time, SAME padding. arXiv:1903.10520.

    timm has sqrt(variance + 1e-8) below the line.
    """

    cfg: Model
    features: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x_bhwc.shape[-1], self.features)
        w_hwio = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        w_hwio = w_hwio - w_hwio.mean(axis=(0, 1, 2), keepdims=True)
        if self.cfg.stem_eps == "timm":
            w_hwio = w_hwio * jax.lax.rsqrt(w_hwio.var(axis=(0, 1, 2), keepdims=True) + VARIANCE_EPS)
        else:
            w_hwio = w_hwio / (w_hwio.std(axis=(0, 1, 2), keepdims=True) + STD_EPS)
        dtype = jnp.dtype(self.cfg.dtype)
        x_bhwc, w_hwio = x_bhwc.astype(dtype), w_hwio.astype(dtype)
        if self.size == 1:  # a product: XLA's gradients of the convolution take four times as long on CPUs
            return kernels.product(x_bhwc[:, :: self.stride, :: self.stride], w_hwio[0, 0])
        return jax.lax.conv_general_dilated(
            x_bhwc,
            w_hwio,
            window_strides=(self.stride, self.stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class GroupNorm(Module):
    """GroupNorm over space and 32 groups of channels, statistics and scaling in float32. arXiv:1803.08494."""

    cfg: Model
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        eps = GROUP_NORM_EPS[self.cfg.stem_eps]
        c = x_bhwc.shape[-1]
        scale_c = self.param("scale", self.scale_init, (c,), jnp.float32)
        bias_c = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
        y_bhwc = x_bhwc.astype(jnp.float32)
        y_bhwc = y_bhwc - _group_mean(y_bhwc)
        factor_b11c = jax.lax.rsqrt(_group_mean(jnp.square(y_bhwc)) + eps) * scale_c.reshape(1, 1, 1, c)
        return (y_bhwc * factor_b11c + bias_c.reshape(1, 1, 1, c)).astype(x_bhwc.dtype)


def _group_mean(x_bhwc: jax.Array) -> jax.Array:
    """Means over space and each group of channels, repeated for each channel: [b, 1, 1, c].

    Over space first: an array with groups and their channels as two dimensions is slow to go through.
    """
    b, _, _, c = x_bhwc.shape
    mean_bg = x_bhwc.mean(axis=(1, 2)).reshape(b, GROUPS, c // GROUPS).mean(axis=2)
    return jnp.repeat(mean_bg, c // GROUPS, axis=1).reshape(b, 1, 1, c)
