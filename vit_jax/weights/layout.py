"""Between a model's fields and the names and shapes of its parameters, both ways."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
from flax.traverse_util import flatten_dict

from vit_jax.fields import fail
from vit_jax.models import build, relative
from vit_jax.models.layers import BIASED
from vit_jax.sections import MIXER_ONLY, Model
from vit_jax.weights.dialect import MOST_BLOCKS, Shape, Shapes

MOST_FEATURES = 2**20  # of one axis, far beyond any model


@functools.lru_cache(maxsize=128)
def shapes(model: Model, *, channels: int = 3) -> Shapes:
    """Name and shape of every parameter of `model` for images of that many channels.

    The module itself is asked, with one block, which stands for all of them.
    """
    module = build.build(dataclasses.replace(model, depth=1), classes=1)
    init = functools.partial(build.init, module, image_hw=model.image_hw, channels=channels)
    arrays: Any = flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")
    found = {name: x.shape for name, x in arrays.items() if model.classes or not name.startswith("head")}
    block = {name: shape for name, shape in found.items() if name.startswith("block_0/")}
    others = (
        {name.replace("block_0", f"block_{i}", 1): shape for name, shape in block.items()}
        for i in range(1, model.depth)
    )
    return found | {name: shape for other in others for name, shape in other.items()}


def squeeze(name: str, shape: Shape) -> Shape:
    """`shape` without the leading ones that some files have and our parameter `name` has not."""
    rank = _rank(name)
    while len(shape) > rank and shape[0] == 1:
        shape = shape[1:]
    return shape


def infer(
    found: Shapes,
    *,
    absent_posemb: Literal["none", "sincos2d"],
    class_slot: bool,
    stored_hw: tuple[int, int] | None,
    image_hw: tuple[int, int] | None,
) -> Model:
    """The model that has parameters of these names and shapes. Raises UserError where they tell none.

    The count of positions is that of `stored_hw` pixels where the file tells them, else of a square, else of
    `image_hw`, what the user wants. With `class_slot` the class token has one of them, else it may have.
    Without positions the size is one of these, or 224.
    """
    family = "mixer" if "block_0/token_mlp/up/kernel" in found else "vit"
    needed = ["embed/patch/kernel", "block_0/mlp/up/kernel"]
    needed += ["block_0/attention/query/kernel"] if family == "vit" else []
    absent = [name for name in needed if len(found.get(name, ())) != _rank(name)]
    if absent:
        fail(f"no model without {', '.join(absent)}: this is no ViT, hybrid or Mixer, or not all of one")
    kernel = found["embed/patch/kernel"]
    if kernel[0] != kernel[1] or channels(found) not in (1, 3):
        fail(f"a patch embedding of shape {kernel} is not one of square patches of 1 or 3 channels")
    depth = 1 + max(int(k.split("/")[0][6:]) for k in found if re.match(r"block_\d+/", k))
    largest = max(n for shape in found.values() for n in shape)
    if depth > MOST_BLOCKS or largest > MOST_FEATURES or min(n for s in found.values() for n in s) < 1:
        fail(f"{depth} blocks and axes of up to {largest:,} are no model's: the file is broken or hostile")
    sizes: dict[str, Any] = {
        "family": family,
        "patch_size": kernel[0],
        "width": kernel[3],
        "depth": depth,
        "mlp_width": found["block_0/mlp/up/kernel"][-1],
        "mlp": "swiglu" if "block_0/mlp/gate/kernel" in found else "gelu",
        "mlp_norm": "block_0/mlp/norm/scale" in found,
        "patch_bias": "embed/patch/bias" in found,
        "classes": found["head/kernel"][-1] if found.get("head/kernel") else 0,
        **_stem_fields(found),
    }
    if family == "mixer":
        sizes |= MIXER_ONLY | {"token_width": found["block_0/token_mlp/up/kernel"][-1]}
    else:
        sizes |= _vit_fields(found, absent_posemb)
    return _with_grid(sizes, found, class_slot, (stored_hw, image_hw))


def _vit_fields(found: Shapes, absent_posemb: str) -> dict[str, Any]:
    heads_of_file = sum(name in found for name in ("head/kernel", "head_distill/kernel"))
    class_token, kernel = "embed/class_token" in found, found["embed/patch/kernel"]
    pre_logits = (found.get("pool/pre_logits/kernel") or (0,))[-1]
    pooled = (
        "norm/scale" not in found and "pool/norm/scale" in found
    )  # after a token it would be as before it
    pooling = "map" if "pool/map/probe" in found else "token" if class_token and not pooled else "gap"
    if pooling == "token" and found.get("head/kernel", ())[:1] == (2 * kernel[3],) and not pre_logits:
        pooling = "token_gap"
    hidden = found.get("pool/map/mlp/up/kernel", (0,))[-1]
    heads = found["block_0/attention/query/kernel"][1]
    pool_heads = found.get("pool/map/attention/query/kernel", (0, heads))[1]
    biased = tuple(name for name in BIASED["all"] if f"block_0/attention/{name}/bias" in found)
    return {
        "heads": heads,
        "qkv_bias": next((name for name, which in BIASED.items() if which == biased), "all"),
        "attention_norm": "block_0/attention/norm/scale" in found,
        "relative_bias": "block_0/attention/relative_bias" in found,
        "embed_norm": "embed/norm/scale" in found,
        "final_norm": "pooled" if pooled else "tokens" if "norm/scale" in found else "none",
        "pool_heads": pool_heads if pool_heads != heads else 0,
        "pool_mlp_width": hidden if hidden != found["block_0/mlp/up/kernel"][-1] else 0,
        "class_token": class_token,
        "distill_token": "embed/distill_token" in found,
        "distill_head": "embed/distill_token" not in found or heads_of_file in (0, 2),
        "registers": found["embed/registers"][1] if "embed/registers" in found else 0,
        "posemb": "learned" if "embed/positions" in found else absent_posemb,
        "pooling": pooling,
        "pre_logits": pre_logits,
        "pre_logits_form": "linear" if pre_logits and "pool/pre_logits/bias" not in found else "tanh",
        "qk_norm": "block_0/attention/query_norm/scale" in found,
        "layer_scale": 1e-4
        if "block_0/scale1/gamma" in found
        else 0.0,  # the start of training, not in a file
    }


def _stem_fields(found: Shapes) -> dict[str, Any]:
    root = found.get("embed/stem/conv_root/kernel")
    if root is None:
        return {}
    units: dict[int, int] = {}
    for name in found:
        match = re.match(r"embed/stem/stage(\d+)_unit(\d+)/", name)
        if match:
            units[int(match[1])] = max(units.get(int(match[1]), 0), int(match[2]))
    if max((*units, *units.values()), default=0) > MOST_BLOCKS:
        fail("a stem of that many units is no model's: the file is broken or hostile")
    stages = range(1, max(units, default=0) + 1)
    return {"stem_width": root[-1], "stem_blocks": tuple(units.get(stage, 1) for stage in stages)}


def _with_grid(
    sizes: dict[str, Any],
    found: Shapes,
    class_slot: bool,
    known_hw: tuple[tuple[int, int] | None, tuple[int, int] | None],
) -> Model:
    """The model of `sizes` with the image size and the class slot that its positions or token MLP ask for."""
    stride = _stride(sizes)
    slots, count = 0, math.prod
    if sizes["family"] == "mixer":
        stored = found["block_0/token_mlp/up/kernel"][0]
    elif sizes["posemb"] == "learned":
        stored, slots = found["embed/positions"][1], sizes["class_token"] + sizes["distill_token"]
    elif sizes["relative_bias"]:
        stored, count = found["block_0/attention/relative_bias"][0], relative.count
    else:
        h, w = known_hw[0] or known_hw[1] or (max(224 // stride, 1) * stride,) * 2
        return Model(**sizes, image_size=h if h == w else (h, w))
    for slot in (slots,) if class_slot else (0, slots):
        has_slot = bool(slot) or not slots  # the default where there is no class token
        side = _side(count, stored - slot) * stride
        for hw in (known_hw[0], (side, side), known_hw[1]):
            if hw and stored > slot and count((hw[0] // stride, hw[1] // stride)) == stored - slot:
                size = hw[0] if hw[0] == hw[1] else hw
                return Model(**sizes, image_size=size, posemb_class_slot=has_slot)
    oblong, steps = f"{stored} positions make no square grid", f"in steps of {stride} pixels"
    fail(
        f"{oblong}: pass image_size=(height, width), the one they are stored for, {steps}",
        command=f"{oblong}, and the file does not tell their height and width: save it again from Python by "
        f"vit_jax.load(..., image_size=(height, width)), {steps}",
    )


def _side(count: Callable[[tuple[int, int]], int], stored: int) -> int:
    """Of the largest square grid with at most `stored` positions, as `count` counts them."""
    return next(side for side in itertools.count() if count((side + 1, side + 1)) > stored)


def _stride(sizes: dict[str, Any]) -> int:
    stages = len(sizes.get("stem_blocks", ()))
    return sizes["patch_size"] * (4 * 2 ** max(stages - 1, 0) if sizes.get("stem_width") else 1)


def _rank(name: str) -> int:
    *_, layer, leaf = name.split("/") if "/" in name else ("", name)
    if leaf in ("class_token", "distill_token", "registers", "positions", "probe"):
        return 3
    if leaf == "relative_bias":
        return 2
    projection = layer in ("query", "key", "value")
    if leaf == "kernel":
        return 4 if layer == "patch" or layer.startswith("conv") else 3 if projection or layer == "out" else 2
    return 2 if leaf == "bias" and projection else 1


def channels(found: Shapes) -> int:
    """Channels of the images that parameters of these shapes take."""
    return found.get("embed/stem/conv_root/kernel", found["embed/patch/kernel"])[2]
