"""The parts of an encoder block.

Dims: b batch, n tokens, m tokens attended to, d width, h heads, k features per head, f hidden features.
Parameters are float32; matrix products run in `cfg.dtype`; norm statistics and softmax in float32.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import kernels, native, relative, rotary, vitals
from vit_jax.models.attend import attend, attend_real, attended
from vit_jax.models.module import Module
from vit_jax.sections import Model

XAVIER = nn.initializers.xavier_uniform()
MLP_KERNEL = {"vit": XAVIER, "mixer": nn.initializers.lecun_normal()}  # as in the published code
BIASED = {"all": ("query", "key", "value"), "query_value": ("query", "value"), "none": ()}
MLP_BIAS = nn.initializers.normal(1e-6)  # as in the published code


class Norm(Module):
    """LayerNorm over the last axis, statistics and scaling in float32. arXiv:1607.06450."""

    cfg: Model

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return kernels.layer_norm(x, scale, bias, self.cfg.norm_eps)


class Mlp(nn.Module):
    """gelu(x U + a) V + b, or SwiGLU's (silu(x G + c) * (x U + a)) V + b, with dropout after each layer.

    SwiGLU: arXiv:2002.05202 eq. 6, with biases as in DINOv2. With `mlp_norm`, V takes normalised features
    (arXiv:2110.09456 section 2, EVA-02).
    """

    cfg: Model
    hidden: int

    @nn.compact
    def __call__(self, x_bnd: jax.Array, *, train: bool) -> jax.Array:
        cfg, width = self.cfg, x_bnd.shape[-1]
        y_bnf = Dense(cfg, self.hidden, name="up")(x_bnd)
        if cfg.mlp == "swiglu":
            y_bnf = jax.nn.silu(Dense(cfg, self.hidden, name="gate")(x_bnd)) * y_bnf
        else:
            y_bnf = kernels.gelu(y_bnf, cfg.gelu)
        vitals.sow(self, dormant=lambda: vitals.dormant(y_bnf))
        y_bnf = nn.Dropout(cfg.dropout, deterministic=not train)(y_bnf)
        if cfg.mlp_norm:
            y_bnf = Norm(cfg, name="norm")(y_bnf)
        y_bnd = Dense(cfg, width, name="down")(y_bnf)
        return nn.Dropout(cfg.dropout, deterministic=not train)(y_bnd)


class Attention(Module):
    """softmax(qkᵀ/√k) v over heads, then the output projection. arXiv:1706.03762 eq. 1.

    Queries come from x [b, n, d], keys and values from source [b, m, d], the last of which are patches of
    `grid_hw`, or of images of the grids `grid_b2`, behind which is padding that is not looked at.
    With `qk_norm`, q and k are first normalised over k (arXiv:2302.05442 section 2), with `rotary` they are
    turned by their positions, with `relative_bias` the scores depend on where a key lies from its query, and
    with `attention_norm` the heads' values are normalised over all heads (arXiv:2110.09456 section 2). The
    collection `attention` gets the probabilities p.
    """

    cfg: Model
    grid_hw: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(
        self, x_bnd: jax.Array, source_bmd: jax.Array, grid_b2: jax.Array | None = None
    ) -> jax.Array:
        cfg, width = self.cfg, x_bnd.shape[-1]
        head_width = width // cfg.heads
        biased = BIASED[cfg.qkv_bias]
        heads = lambda name, y_bnd: HeadsIn(cfg, head_width, name in biased, name=name)(y_bnd)
        norm = lambda name, y_bnhk: Norm(cfg, name=name)(y_bnhk) if cfg.qk_norm else y_bnhk
        k_bmhk = norm("key_norm", heads("key", source_bmd))
        v_bmhk = heads("value", source_bmd)
        q_bnhk = norm("query_norm", heads("query", x_bnd))
        if cfg.rotary != "none":
            how: Any = {"prefix": cfg.prefix, "to": cfg.rotary_grid}
            if grid_b2 is None:
                turn = rotary.turn(cfg.rotary, self.grid_hw, head_width, **how)
            else:
                turn = rotary.turn_each(cfg.rotary, grid_b2, source_bmd.shape[1], head_width, **how)
            q_bnhk, k_bmhk = turn(q_bnhk), turn(k_bmhk)
        if cfg.relative_bias:
            shape = (relative.count(cfg.grid_hw), cfg.heads)
            table_rh = self.param("relative_bias", nn.initializers.zeros, shape, jnp.float32)
            bias_hnm = relative.bias(table_rh, cfg.grid_hw)[:, : x_bnd.shape[1]]
            y_bnhk, p_bhnm = attended(q_bnhk, k_bmhk, v_bmhk, bias_hnm=bias_hnm)
        elif grid_b2 is None:
            y_bnhk, p_bhnm = attend(q_bnhk, k_bmhk, v_bmhk)
        else:
            real_bm = native.real(grid_b2, source_bmd.shape[1], cfg.prefix)
            y_bnhk, p_bhnm = attend_real(q_bnhk, k_bmhk, v_bmhk, real_bm)
        self.sow("attention", "p", p_bhnm)
        largest = lambda: vitals.largest_logit(q_bnhk, k_bmhk)
        vitals.sow(self, logit=largest, entropy=lambda: vitals.entropy(p_bhnm))
        if cfg.attention_norm:
            y_bnd = Norm(cfg, name="norm")(y_bnhk.reshape(*y_bnhk.shape[:2], width))
            y_bnhk = y_bnd.reshape(y_bnhk.shape)
        return HeadsOut(cfg, width, name="out")(y_bnhk)


class HeadsIn(Module):
    """x W + a in heads, [b, n, d] to [b, n, h, k]: nn.DenseGeneral's parameters and initial values."""

    cfg: Model
    head_width: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> jax.Array:
        b, n, d = x_bnd.shape
        h, k = self.cfg.heads, self.head_width
        kernel_dhk = self.param("kernel", _xavier(1), (d, h, k), jnp.float32)
        bias_hk = self.param("bias", nn.initializers.zeros, (h, k), jnp.float32) if self.use_bias else None
        return affine(self.cfg, x_bnd, kernel_dhk.reshape(d, h * k), bias_hk).reshape(b, n, h, k)


class HeadsOut(Module):
    """The heads joined, times W, plus a, [b, n, h, k] to [b, n, d]; otherwise as HeadsIn."""

    cfg: Model
    width: int

    @nn.compact
    def __call__(self, y_bnhk: jax.Array) -> jax.Array:
        b, n, h, k = y_bnhk.shape
        kernel_hkd = self.param("kernel", _xavier(2), (h, k, self.width), jnp.float32)
        bias_d = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        kernel_od = kernel_hkd.reshape(h * k, self.width)
        return affine(self.cfg, y_bnhk.reshape(b, n, h * k), kernel_od, bias_d)


class Dense(Module):
    """x W + a over the last axis, a layer of an MLP: nn.Dense's parameters, the published initial values."""

    cfg: Model
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = x.shape[-1]
        kernel = self.param("kernel", MLP_KERNEL[self.cfg.family], (d, self.features), jnp.float32)
        bias = self.param("bias", MLP_BIAS, (self.features,), jnp.float32)
        return affine(self.cfg, x, kernel, bias)


class LayerScale(Module):
    """gamma * x with one gamma per feature, small at first. arXiv:2103.17239 eq. 4."""

    cfg: Model

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> jax.Array:
        start = nn.initializers.constant(self.cfg.layer_scale)
        gamma_d = self.param("gamma", start, (x_bnd.shape[-1],), jnp.float32)
        return x_bnd * gamma_d.reshape(1, 1, -1).astype(x_bnd.dtype)


class DropPath(nn.Module):
    """Drop a branch [b, n, d] of whole examples, the kept ones scaled by 1/(1 - rate). arXiv:1603.09382.

    Unlike that of nn.Dropout the rate may be traced, which a scan over blocks needs.
    """

    rate: float | jax.Array
    deterministic: bool

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> jax.Array:
        if self.deterministic or (isinstance(self.rate, float) and self.rate == 0.0):
            return x_bnd
        keep = 1.0 - self.rate
        kept_b11 = jax.random.bernoulli(self.make_rng("dropout"), keep, (x_bnd.shape[0], 1, 1))
        return jnp.where(kept_b11, x_bnd / jnp.asarray(keep, x_bnd.dtype), jnp.zeros_like(x_bnd))


class Block(nn.Module):
    """Pre-norm encoder block: x + attention(norm(x)), then x + mlp(norm(x)), each branch with its LayerScale.

    With `branch_norm=after` x + norm(attention(x)), then x + norm(mlp(x)) (arXiv:2111.09883 section 3.2).
    `drop_rate` is the chance of dropping each branch of an example. With `first`, only so many tokens are
    queries and come out, [b, first, d]. Patches lie on `grid_hw`, or on a grid per image, `grid_b2`.
    """

    cfg: Model
    drop_rate: float | jax.Array
    first: int | None = None
    grid_hw: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x_bnd: jax.Array, grid_b2: jax.Array | None = None, *, train: bool) -> jax.Array:
        cfg = self.cfg
        drop_path = lambda: DropPath(self.drop_rate, deterministic=not train)
        norm = lambda where, name, x: Norm(cfg, name=name)(x) if cfg.branch_norm == where else x
        y_bnd = norm("before", "norm1", x_bnd)
        y_bnd = Attention(cfg, self.grid_hw, name="attention")(y_bnd[:, : self.first], y_bnd, grid_b2)
        y_bnd = nn.Dropout(cfg.dropout, deterministic=not train)(y_bnd)
        y_bnd = norm("after", "norm1", y_bnd)
        if cfg.layer_scale:
            y_bnd = LayerScale(cfg, name="scale1")(y_bnd)
        x_bnd = x_bnd[:, : self.first] + drop_path()(y_bnd)
        y_bnd = norm("before", "norm2", x_bnd)
        y_bnd = Mlp(cfg, cfg.mlp_width, name="mlp")(y_bnd, train=train)
        y_bnd = norm("after", "norm2", y_bnd)
        if cfg.layer_scale:
            y_bnd = LayerScale(cfg, name="scale2")(y_bnd)
        return x_bnd + drop_path()(y_bnd)


class MapPool(Module):
    """Attention pooling by one learned probe, then a residual MLP. arXiv:2106.04560 appendix A."""

    cfg: Model

    @nn.compact
    def __call__(self, x_bnd: jax.Array, grid_b2: jax.Array | None = None, *, train: bool) -> jax.Array:
        b, _, d = x_bnd.shape
        hidden = self.cfg.pool_mlp_width or self.cfg.mlp_width
        plain: Any = {"rotary": "none", "rotary_grid": 0, "attention_norm": False, "mlp_norm": False}
        plain |= {"relative_bias": False, "qkv_bias": "all"}
        cfg = dataclasses.replace(self.cfg, heads=self.cfg.pool_heads or self.cfg.heads, **plain)
        probe_11d = self.param("probe", XAVIER, (1, 1, d), jnp.float32)
        probe_b1d = jnp.broadcast_to(probe_11d, (b, 1, d)).astype(x_bnd.dtype)
        x_b1d = Attention(cfg, name="attention")(probe_b1d, x_bnd, grid_b2)
        y_b1d = Norm(cfg, name="norm")(x_b1d)
        return (x_b1d + Mlp(cfg, hidden, name="mlp")(y_b1d, train=train))[:, 0]


def affine(cfg: Model, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """x W + a, or x W, over the last axis in `cfg.dtype`; `bias` may have any shape."""
    y = kernels.product(x.astype(cfg.dtype), kernel.astype(cfg.dtype))
    return y if bias is None else kernels.shifted(y, bias.astype(cfg.dtype).reshape(-1))


def _xavier(inputs: int) -> nn.initializers.Initializer:
    """Xavier's initial values of the 2-D kernel whose inputs are the first `inputs` axes."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        flat = (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
        return XAVIER(key, flat, dtype).reshape(shape)

    return init
