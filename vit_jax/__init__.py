"""Vision Transformers in JAX and Flax: the public interface, imported on first use so that this is quick.

`vit_jax.config("configs/vit_b16.py", {"optim.lr": 3e-4})` gives a config: a module that can be called.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax import config as config
    from vit_jax.loaded import Loaded, load, save
    from vit_jax.run.report import Sink
    from vit_jax.trained import Run, train

HOMES = {
    **dict.fromkeys(("Loaded", "load", "save"), "loaded"),
    **dict.fromkeys(("Run", "train"), "trained"),
    "Sink": "run.report",
}
__all__ = ["Loaded", "Run", "Sink", "config", "load", "save", "train"]


def __getattr__(name: str) -> Any:
    if name == "config":
        return importlib.import_module("vit_jax.config")
    if name not in HOMES:
        raise AttributeError(f"module 'vit_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vit_jax.{HOMES[name]}"), name)
