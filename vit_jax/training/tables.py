"""What depends on a parameter's name: decay, layer-wise learning rates, freezing, matrices for Muon.

Names are paths such as block_0/mlp/up/kernel. Each table gives a tree like the parameters. Layers in one
array (models/stack.py) go by the name of the first.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from optax.contrib import MuonDimensionNumbers

from vit_jax.errors import UserError
from vit_jax.fields import matches
from vit_jax.models.stack import FIRST, STACK
from vit_jax.sections import Optim


def by_name(f: Callable[[str], Any], tree: Any) -> Any:
    """`f(name)` for each leaf of `tree`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: f(name_of(path)), tree)


def name_of(path: tuple[Any, ...]) -> str:
    """Such as block_0/mlp/up/kernel."""
    return "/".join(FIRST if key.key == STACK else key.key for key in path)


def check(cfg: Optim, params: Any) -> None:
    """Raise UserError for a pattern that matches no parameter, or patterns that leave nothing to train."""
    names = jax.tree.leaves(by_name(lambda name: name, params))
    kernels = [name for name in names if name.endswith("/kernel")]
    fields = dict.fromkeys(("decayed", "trained", "frozen"), names)
    for field, among in (fields | ({"lora_kernels": kernels} if cfg.lora_rank else {})).items():
        for pattern in getattr(cfg, field):
            if not any(re.search(pattern, name) for name in among):
                what = "kernel" if field == "lora_kernels" else "parameter"
                raise UserError(f"optim.{field}={pattern} matches no {what}: they are named like {among[0]}")
    if not any(jax.tree.leaves(trained(params, cfg))):
        raise UserError(f"optim.trained={cfg.trained} and optim.frozen={cfg.frozen} leave nothing to train")


def decayed(params: Any, cfg: Optim) -> Any:
    """True for the leaves that weight decay applies to."""
    return by_name(lambda name: matches(cfg.decayed, name), params)


def trained(params: Any, cfg: Optim) -> Any:
    """True for the leaves that are trained: of `cfg.trained` (all, if empty), and of none of `cfg.frozen`.

    With adapters all are, as models/lora.py has taken the others out.
    """
    if cfg.lora_rank:
        return jax.tree.map(lambda _: True, params)
    chosen = lambda name: not cfg.trained or matches(cfg.trained, name)
    return by_name(lambda name: chosen(name) and not matches(cfg.frozen, name), params)


def same_in_all_blocks(cfg: Optim, params: Any, depth: int) -> bool:
    """Whether decay, training and adapters tell no block from another: their layers may be one array."""
    own = [name for name in params if name.startswith("block_")]
    chosen = [[table({name: params[name]}, cfg)[name] for table in (decayed, trained)] for name in own]
    return len(own) in (0, depth) and all(x == chosen[0] for x in chosen)


def blocks(params: Any) -> int:
    """How many blocks have parameters of their own in the tree."""
    return sum(name.startswith("block_") for name in params)


def layer_scales(params: Any, decay: float) -> Any:
    """decay^(layers above): 1 for the head and the last norm, decay^depth+1 for the embedding.

    arXiv:2106.08254 appendix, as in BEiT and MAE. Layers in one array have an array of scales.
    """
    stacked = jax.tree.leaves(params.get(STACK))
    depth = stacked[0].shape[0] if stacked else blocks(params)

    def scale(path: tuple[Any, ...], x: Any) -> Any:
        part = path[0].key
        if part == STACK:
            return (decay ** (depth - np.arange(depth))).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        if part == "embed":
            return decay ** (depth + 1)
        return decay ** (depth - int(part[6:])) if part.startswith("block_") else 1.0

    return jax.tree_util.tree_map_with_path(scale, params)


# (pattern, axes summed over, axes that come out) of the kernels in the blocks; the first match counts.
MATRICES = (
    (r"^block_\d+/attention/(query|key|value)/kernel$", (0,), (1, 2)),
    (r"^block_\d+/attention/out/kernel$", (0, 1), (2,)),
    (r"^block_\d+/.*kernel$", (0,), (1,)),
)


def matrices(params: Any) -> Any:
    """How each leaf is a matrix for Muon, or None for what it is not used on: all outside the blocks."""

    def dimensions(name: str) -> MuonDimensionNumbers | None:
        found = (MuonDimensionNumbers(i, o) for pattern, i, o in MATRICES if re.search(pattern, name))
        return next(found, None)

    return by_name(dimensions, params)
