"""Vision Transformers in JAX and Flax. `load` is loaded on first use, so that `import vit_jax` is quick."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.loaded import Loaded, load

__all__ = ["Loaded", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vit_jax' has no attribute {name!r}")
    from vit_jax import loaded

    return getattr(loaded, name)
