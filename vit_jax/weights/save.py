"""From a model and its parameters to a file that other code reads."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vit_jax.config import Model
from vit_jax.fields import fail
from vit_jax.weights import big_vision, layout, npz, official
from vit_jax.weights.dialect import Dialect, Flat

DIALECTS = {
    ("official", "vit"): official.VIT,
    ("official", "mixer"): official.MIXER,
    ("big_vision", "vit"): big_vision.VIT,
    ("big_vision", "mixer"): big_vision.MIXER,
}
# Of training, or of how the class token's position is kept: not told by a file, and not needed to use it.
UNTOLD = {
    "image_size",
    "posemb_class_slot",
    "dropout",
    "stochastic_depth",
    "head_bias",
    "dtype",
    "layer_scale",
}


def write(path: str | Path, params: Any, model: Model, *, dialect: Literal["official", "big_vision"]) -> None:
    """Write nested `params` (numpy or jax arrays) of `model` as float32, whole or not at all.

    Raises UserError if they do not fit `model`, or if a file of the dialect cannot tell all of it.
    """
    into = DIALECTS.get((dialect, model.family))
    if into is None:
        fail(f"dialect={dialect!r} cannot be written: use official or big_vision")
    flat = flatten(params)
    _check_fit(flat, model)
    theirs = {name: into.names.theirs(name) for name in flat}
    homeless = [name for name, other in theirs.items() if other is None]
    if homeless:
        fail(f"{dialect} files cannot hold {', '.join(homeless)}: choose another dialect")
    packed = into.pack(flat, model)
    _check_told(packed, model, into)
    arrays = {f"{into.prefix}{theirs[name]}": array for name, array in packed.items()}
    npz.write(Path(path), arrays, image_hw=model.image_hw)


def flatten(params: Any, prefix: str = "") -> Flat:
    """{"block_0/norm1/scale": float32 array, ...} of a nested mapping."""
    flat: Flat = {}
    for name, value in params.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.asarray(value).astype(np.float32)
    return flat


def _check_fit(flat: Flat, model: Model) -> None:
    found = {name: array.shape for name, array in flat.items()}
    channels = layout.channels(found) if "embed/patch/kernel" in found else 3
    wanted = layout.shapes(model, channels=channels)
    wrong = [
        f"{n} is {found.get(n)}, not {wanted.get(n)}" for n in wanted | found if found.get(n) != wanted.get(n)
    ]
    if wrong:
        fail(f"the parameters are not those of the model, and nothing was written: {', '.join(wrong)}")


def _check_told(packed: Flat, model: Model, dialect: Dialect) -> None:
    """Raise UserError unless reading the file back would give `model`."""
    found = {name: layout.squeeze(name, array.shape) for name, array in packed.items()}
    told = layout.infer(
        found,
        absent_posemb=dialect.absent_posemb,
        class_slot=dialect.class_slot,
        stored_hw=model.image_hw,
        image_hw=None,
    )
    wanted, read = dataclasses.asdict(model), dataclasses.asdict(told)
    lost = [
        f"model.{k}={wanted[k]} (read as {read[k]})"
        for k in wanted
        if k not in UNTOLD and wanted[k] != read[k]
    ]
    if lost:
        fail(f"{dialect.name} files cannot tell {', '.join(lost)}: choose another dialect")
