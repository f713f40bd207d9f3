"""Linen ViTs as others write them: Flax's stock layers, the official code and big_vision.

All get the plain step of the official trainer: softmax cross-entropy, optax, gradients clipped, all donated.
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
    model, apply = forward(work.cfg, "flax" if checkout is None else "official", checkout)
    image, label = map(jnp.asarray, work.examples())
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = jax.jit(model)(jax.random.key(0), image)
        if work.mode == INFERENCE:
            return compiled(jax.jit(apply), (params, image), carries=False)
        init, update = training(apply, work.mode)
        step = jax.jit(lambda state: update(state, image, label), donate_argnums=0)
        return compiled(step, (init(params),), carries=True)


def forward(cfg: Model, peer: str, checkout: str | None = None) -> tuple[Any, Any]:
    """A peer's `init(key, image)` and `apply(params, image)`, of uint8 [b, h, w, 3], logits [b, c]."""
    kinds = {"flax": _stock, "official": _official, "big_vision": _big_vision}
    model, options = kinds[peer](cfg, Path(checkout or ""))
    seen = lambda image: image.astype(jnp.float32) / 127.5 - 1
    init = lambda key, image: model.init(key, seen(image), **options)["params"]

    def apply(params: Any, image: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, seen(image), **options)
        return logits[0] if isinstance(logits, tuple) else logits

    return init, apply


def training(apply: Any, mode: str) -> tuple[Any, Any]:
    """The functions that make the first state of parameters, and the next of a state, images and labels."""
    kinds = {"sgd": lambda: optax.sgd(0.03, momentum=0.9), "adamw": lambda: optax.adamw(1e-3)}
    if mode not in kinds:
        raise SystemExit(f"--modes {mode}: peers know {INFERENCE}, {', '.join(kinds)}")
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP_NORM), kinds[mode]())

    def update(state: Any, image: jax.Array, label: jax.Array) -> Any:
        params, opt_state = state
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(apply(p, image), label).mean()
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return lambda params: (params, optimizer.init(params)), update


def _stock(cfg: Model, _: Path) -> tuple[nn.Module, dict[str, Any]]:
    return Stock(cfg), {}


def _official(cfg: Model, checkout: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The official VisionTransformer. Its package is named as ours is, so its files are loaded one by one."""
    folder = checkout / "vit_jax"
    if not (folder / "models_vit.py").is_file():
        raise SystemExit(f"official={checkout} is no checkout of google-research/vision_transformer")
    for name in ("models_resnet", "models_vit"):
        module = _module(f"vit_jax.{name}", folder / f"{name}.py")
        setattr(sys.modules["vit_jax"], name, module)
    vit = sys.modules["vit_jax.models_vit"]
    if cfg.dtype != "float32":  # a field of its blocks that its encoder never sets
        vit.Encoder1DBlock = functools.partial(vit.Encoder1DBlock, dtype=jnp.dtype(cfg.dtype))
    transformer = {"mlp_dim": cfg.mlp_width, "num_heads": cfg.heads, "num_layers": cfg.depth}
    model = vit.VisionTransformer(
        num_classes=cfg.classes,
        patches=types.SimpleNamespace(size=(cfg.patch_size, cfg.patch_size)),
        transformer=transformer | {"attention_dropout_rate": 0.0, "dropout_rate": 0.0},
        hidden_size=cfg.width,
    )
    return model, {"train": False}


def _big_vision(cfg: Model, checkout: Path) -> tuple[nn.Module, dict[str, Any]]:
    """big_vision's ViT, as its own file has it; what only reads its checkpoints is left out."""
    path = checkout / "big_vision" / "models" / "vit.py"
    if not path.is_file():
        raise SystemExit(f"big_vision={checkout} is no checkout of google-research/big_vision")
    for name in ("big_vision", "big_vision.utils", "big_vision.models", "big_vision.models.common"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["big_vision"].utils = sys.modules["big_vision.utils"]  # pyright: ignore
    sys.modules["big_vision.models"].common = sys.modules["big_vision.models.common"]  # pyright: ignore
    vit = _module("big_vision.models.vit", path)
    model = vit.Model(
        cfg.classes,
        patch_size=(cfg.patch_size, cfg.patch_size),
        width=cfg.width,
        depth=cfg.depth,
        mlp_dim=cfg.mlp_width,
        num_heads=cfg.heads,
        pool_type="tok",
        dtype_mm=cfg.dtype,
    )
    return model, {}


def _module(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
