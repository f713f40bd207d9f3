"""Low-rank adapters beside frozen kernels: W + alpha / rank * A B, arXiv:2106.09685 equation 3.

A model's parameters come apart in what is trained (adapters in the place of their kernels, and other arrays
such as the head) and the base, all that stays as it is. Both are nested dicts under the model's names.
"""

import math
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.errors import UserError
from vit_jax.fields import matches
from vit_jax.models.stack import STACK
from vit_jax.sections import Optim

A, B = "/lora_a", "/lora_b"  # after the name of their kernel
BESIDE = ("^head",)  # what is trained beside adapters where optim.trained names nothing
TWO_OUT = r"/(query|key|value)/kernel$"  # [width, heads, features]: the last two axes come out, of others one


def split(params: Any, cfg: Optim, key: jax.Array) -> tuple[Any, Any]:
    """(trained, base) of written-out `params`: A is normal with variance 1 / inputs, B is zero.

    So the first step sees the base itself. Each adapter is drawn from `key` and its name alone.
    """
    trained: dict[str, Any] = {}
    base: dict[str, Any] = {}
    for name, x in flatten_dict(params, sep="/").items():
        if adapted(name, cfg):
            base[name] = x
            trained |= {name + A: _drawn(name, x, cfg, key), name + B: _zeros(name, x, cfg)}
        else:
            (trained if _beside(name, cfg) else base)[name] = x
    return unflatten_dict(trained, sep="/"), unflatten_dict(base, sep="/")


def check(params: Any, cfg: Optim) -> None:
    """Raise UserError for a rank above the smaller side of a kernel, whose product could have no more."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    for name, x in flat.items():
        if adapted(name, cfg):
            axes = _inputs(name, x.ndim)
            most = min(math.prod(x.shape[:axes]), math.prod(x.shape[axes:]))
            if cfg.lora_rank > most:
                raise UserError(f"optim.lora_rank={cfg.lora_rank} is above {most}, the rank of {name}")


def merge(trained: Any, base: Any, cfg: Optim) -> Any:
    """The model's parameters: each adapter's product added to its kernel. Takes stacked layers, too."""
    own: dict[str, Any] = flatten_dict(trained, sep="/")
    whole: dict[str, Any] = dict(flatten_dict(base, sep="/"))
    for name, x in own.items():
        if name.endswith(A):
            kernel = name.removesuffix(A)
            whole[kernel] = whole[kernel] + cfg.lora_alpha / cfg.lora_rank * _product(
                kernel, x, own[kernel + B]
            )
        elif not name.endswith(B):
            whole[name] = x
    return unflatten_dict(whole, sep="/")


def adapted(name: str, cfg: Optim) -> bool:
    """Whether the parameter is a kernel with an adapter."""
    return name.endswith("/kernel") and matches(cfg.lora_kernels, name)


def _beside(name: str, cfg: Optim) -> bool:
    return matches(cfg.trained or BESIDE, name) and not matches(cfg.frozen, name)


def _drawn(name: str, kernel: Any, cfg: Optim, key: jax.Array) -> jax.Array:
    axes = _inputs(name, kernel.ndim)
    own = jax.random.fold_in(key, zlib.crc32(name.encode()))
    shape = (*kernel.shape[:axes], cfg.lora_rank)
    return jax.random.normal(own, shape, jnp.float32) / math.sqrt(math.prod(kernel.shape[:axes]))


def _zeros(name: str, kernel: Any, cfg: Optim) -> jax.Array:
    return jnp.zeros((cfg.lora_rank, *kernel.shape[_inputs(name, kernel.ndim) :]), jnp.float32)


def _inputs(name: str, ndim: int) -> int:
    return ndim - (2 if re.search(TWO_OUT, name) else 1)


def _product(name: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """A B in float32 on every device: TPUs would round the operands of products to bfloat16."""
    product = lambda a, b: jnp.tensordot(a, b, 1, precision="highest")
    return jax.vmap(product)(a, b) if name.startswith(f"{STACK}/") else product(a, b)
