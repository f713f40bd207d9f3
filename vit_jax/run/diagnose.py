"""Where a step went wrong: the first module with a value that is not finite.

Dims: b batch, h w pixels, c channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.training.step import normalise


def first_bad_module(model: nn.Module, params: Any, image_bhwc: jax.Array) -> str | None:
    """Path such as block_3/mlp/up of the first module, innermost, whose output is not finite; None: all are.

    `image_bhwc` is normalised. Modules are taken in the order in which they finish.
    """
    names: list[str] = []

    def flags(params: Any) -> jax.Array:
        finite: list[jax.Array] = []

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            out = call(*args, **kwargs)
            if context.method_name == "__call__":
                names.append("/".join(context.module.path) or "the loss")
                finite.append(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(out)]).all())
            return out

        with nn.intercept_methods(watch):
            model.apply({"params": params}, image_bhwc, train=False)
        return jnp.stack(finite)

    sound = np.asarray(jax.jit(flags)(params))
    return None if sound.all() else names[int(sound.argmin())]


def explain(model: nn.Module, params: Any, batch: Any, preprocess: Any) -> str:
    """One clause on where numbers stopped being finite in the forward pass of `batch`."""
    name = first_bad_module(model, params, normalise(batch.image, preprocess))
    return f"first in {name}" if name else "the forward pass is finite without dropout: its gradients are not"
