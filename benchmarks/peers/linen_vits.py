"""Linen ViTs as others write them: Flax's stock attention, or a checkout of the official code. For step.py.

Both get the plain step of the official trainer: softmax cross-entropy, optax, gradients clipped, all donated.
"""

import functools
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from contenders import CLIP_NORM, INFERENCE, Program, Work, compiled

from vit_jax.sections import Model


class Stock(nn.Module):
    """A ViT of Flax's own layers, arXiv:2010.11929."""

    cfg: Model

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.cfg
        dtype, p = jnp.dtype(c.dtype), (c.patch_size, c.patch_size)
        x = nn.Conv(c.width, p, strides=p, padding="VALID", dtype=dtype)(x)
        x = x.reshape(x.shape[0], -1, c.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, c.width), jnp.float32).astype(dtype)
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]), jnp.float32).astype(
            dtype
        )
        for _ in range(c.depth):
            y = nn.LayerNorm(dtype=dtype)(x)
            x = x + nn.MultiHeadDotProductAttention(c.heads, dtype=dtype, deterministic=True)(y, y)
            y = nn.gelu(nn.Dense(c.mlp_width, dtype=dtype)(nn.LayerNorm(dtype=dtype)(x)))
            x = x + nn.Dense(c.width, dtype=dtype)(y)
        return nn.Dense(c.classes)(nn.LayerNorm(dtype=dtype)(x)[:, 0].astype(jnp.float32))


def program(work: Work, *, checkout: str | None = None) -> Program:
    """The stock encoder, or with `checkout` the official model of that folder."""
    if checkout is None:
        model, options = Stock(work.cfg), {}
    else:
        model, options = _official(work.cfg, Path(checkout)), {"train": False}
    apply = lambda params, image: model.apply(
        {"params": params}, image.astype(jnp.float32) / 127.5 - 1, **options
    )
    image, label = map(jnp.asarray, work.examples())
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = jax.jit(model.init, static_argnames=tuple(options))(
            jax.random.key(0), image.astype(jnp.float32), **options
        )["params"]
        if work.mode == INFERENCE:
            return compiled(jax.jit(apply), (params, image), carries=False)
        return _training(apply, params, image, label, work.mode)


def _training(apply: Any, params: Any, image: jax.Array, label: jax.Array, mode: str) -> Program:
    kinds = {"sgd": lambda: optax.sgd(0.03, momentum=0.9), "adamw": lambda: optax.adamw(1e-3)}
    if mode not in kinds:
        raise SystemExit(f"--modes {mode}: peers know {INFERENCE}, {', '.join(kinds)}")
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP_NORM), kinds[mode]())

    def loss(params: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, image), label).mean()

    def update(state: Any) -> Any:
        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return compiled(jax.jit(update, donate_argnums=0), ((params, optimizer.init(params)),), carries=True)


def _official(cfg: Model, checkout: Path) -> nn.Module:
    """The official VisionTransformer. Its package is named as ours is, so its files are loaded one by one."""
    modules = {}
    for name in ("models_resnet", "models_vit"):
        spec = importlib.util.spec_from_file_location(f"vit_jax.{name}", checkout / "vit_jax" / f"{name}.py")
        if spec is None or spec.loader is None or not Path(str(spec.origin)).is_file():
            raise SystemExit(f"official={checkout} is no checkout of google-research/vision_transformer")
        modules[name] = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        setattr(sys.modules["vit_jax"], name, modules[name])
        spec.loader.exec_module(modules[name])
    vit = modules["models_vit"]
    if cfg.dtype != "float32":  # a field of its blocks that its encoder never sets
        vit.Encoder1DBlock = functools.partial(vit.Encoder1DBlock, dtype=jnp.dtype(cfg.dtype))
    transformer = {"mlp_dim": cfg.mlp_width, "num_heads": cfg.heads, "num_layers": cfg.depth}
    return vit.VisionTransformer(
        num_classes=cfg.classes,
        patches=types.SimpleNamespace(size=(cfg.patch_size, cfg.patch_size)),
        transformer=transformer | {"attention_dropout_rate": 0.0, "dropout_rate": 0.0},
        hidden_size=cfg.width,
    )
