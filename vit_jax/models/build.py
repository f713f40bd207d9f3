"""From a config section to a module and its parameters."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.mixer import Mixer
from vit_jax.models.vit import ViT
from vit_jax.sections import Model

FAMILIES = {"vit": ViT, "mixer": Mixer}


def build(cfg: Model, *, classes: int = 0, scan: bool = False, remat: str = "none") -> nn.Module:
    """The module of `cfg`; `classes` stands in for `cfg.classes=0`, `scan` and `remat` are as in `Train`.

    Without either it has no head, and gives features alone.
    """
    cfg = dataclasses.replace(cfg, classes=cfg.classes or classes)
    return FAMILIES[cfg.family](cfg, scan=scan, remat=remat)


def init(model: nn.Module, key: jax.Array, *, image_hw: tuple[int, int], channels: int) -> Any:
    """Fresh float32 parameters; pure, so that it runs under jit, with shardings, or under `eval_shape`."""
    return model.init(key, jnp.zeros((1, *image_hw, channels), jnp.float32))["params"]


def count(params: Any) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(x.size for x in jax.tree.leaves(params))
