"""From a model and its parameters to a file that other code reads."""

import dataclasses
import os
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict

from vit_jax import paths
from vit_jax.fields import fail
from vit_jax.sections import NOT_IN_FILES, Model, Preprocess
from vit_jax.weights import dialects, layout, load, prefixes
from vit_jax.weights.dialect import Dialect, Flat
from vit_jax.weights.formats import hf_folder, npz, processors, safetensors

FORMATS = {".npz": npz, ".safetensors": safetensors}
NUMERICS = ("gelu", "norm_eps", "stem_eps")


def write(
    path: str | os.PathLike[str],
    params: Any,
    model: Model,
    *,
    dialect: str,
    preprocess: Preprocess | None = None,
    class_names: tuple[str, ...] = (),
    loss: str = "softmax",
    numerics: Literal["same", "theirs"] = "same",
    check_only: bool = False,
) -> None:
    """Write nested `params` (numpy or jax arrays) of `model` as float32, whole or not at all.

    `path` ends in .npz or .safetensors, or is a folder of transformers that `dialect="huggingface"` makes,
    with `preprocess` (the family's if None), `class_names` and `loss` in it. With `numerics="theirs"` a file
    is also written where its readers will compute with another GELU or other epsilons than `model`. With
    `check_only` nothing is written. Raises UserError if the parameters do not fit `model`, or if a file of
    the dialect cannot tell all of it.
    """
    path, flat = paths.of(path), flatten(params)
    families = [d for d in dialects.DIALECTS if d.name == dialect]
    if not families:
        fail(f"dialect={dialect!r} cannot be written: use {', '.join(dialects.names())}")
    _check_fit(flat, model)
    into = next((d for d in families if d.holds(model)), None)
    if into is None:
        fail(f"{dialect} has no family of this {model.family} model: choose another dialect")
    homeless = [name for name in flat if into.theirs(name) is None] + into.lacks(model)
    if homeless:
        fail(f"{into.label} files cannot hold {', '.join(homeless)}: choose another dialect")
    beside = None  # config.json and preprocessor_config.json of a folder
    if path.suffix not in FORMATS:
        if into.config is None:
            fail(f"{path} ends in neither .npz nor .safetensors, and {into.name} is not written as a folder")
        channels = layout.channels({name: array.shape for name, array in flat.items()})
        config = hf_folder.config(model, class_names, loss, into.config, channels=channels)
        beside = config, processors.written(preprocess or into.preprocess(model), model.image_hw)
    arrays = into.arrays(flat, model)
    chosen = {name: getattr(model, name) for name in into.chosen} if path.suffix == ".safetensors" else {}
    stated = chosen | ({name: getattr(model, name) for name in NUMERICS} if beside else {})
    _check_kept(arrays, model, into, stated, set(NUMERICS) if numerics == "theirs" else set())
    if beside is not None and path.is_file():
        fail(f"{path} is a file, not a folder: name another")
    if check_only:
        return
    if beside is None:
        _put(path, arrays, model, into, chosen)
        return
    paths.make_folder(path)
    _put(path / hf_folder.WEIGHTS, arrays, model, into, chosen)
    hf_folder.write(path, *beside)


def _put(path: paths.Path, arrays: Flat, model: Model, into: Dialect, chosen: dict[str, Any]) -> None:
    options: dict[str, Any] = {"fields": chosen} if chosen else {}
    heads = model.heads if into.per_head else None
    FORMATS[path.suffix].write(path, arrays, image_hw=model.image_hw, heads=heads, **options)


def flatten(params: Any) -> Flat:
    """{"block_0/norm1/scale": float32 array, ...} of a nested mapping."""
    flat = flatten_dict(params, sep="/")
    return {name: np.asarray(array).astype(np.float32) for name, array in flat.items()}


def _check_fit(flat: Flat, model: Model) -> None:
    found = {name: array.shape for name, array in flat.items()}
    channels = layout.channels(found) if "embed/patch/kernel" in found else 3
    wanted = layout.shapes(model, channels=channels)
    wrong = [
        f"{n} is {found.get(n)}, not {wanted.get(n)}" for n in wanted | found if found.get(n) != wanted.get(n)
    ]
    if wrong:
        fail(f"the parameters are not those of the model, and nothing was written: {', '.join(wrong)}")


def _check_kept(arrays: Flat, model: Model, into: Dialect, numerics: dict[str, Any], free: set[str]) -> None:
    """Raise UserError unless reading the file back would give `model`, but for the fields in `free`."""
    shapes = {name: array.shape for name, array in arrays.items()}
    found = load.translate(shapes, prefixes.prefix_of(shapes) or "", model.heads)
    inferred = load.infer(found, numerics, stored_hw=model.image_hw, image_hw=None)
    wanted, read = dataclasses.asdict(model), dataclasses.asdict(inferred)
    lost = [k for k in wanted if k not in NOT_IN_FILES | free and wanted[k] != read[k]]
    if not lost:
        return
    fields = ", ".join(f"model.{k}={wanted[k]} (read as {read[k]})" for k in lost)
    hint = "choose another dialect"
    if not set(lost) - set(NUMERICS):
        hint += ", a folder of huggingface, or numerics=theirs to let its readers compute with theirs"
    fail(f"{into.label} files cannot tell {fields}: {hint}")
