"""From a model and its parameters to a file that other code reads."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vit_jax.fields import fail
from vit_jax.sections import UNTOLD, Model, Preprocess
from vit_jax.weights import (
    big_vision,
    hub,
    huggingface,
    layout,
    npz,
    official,
    safetensors,
    timm,
    torch_files,
    torch_load,
)
from vit_jax.weights.dialect import Dialect, Flat, TorchDialect

DialectName = Literal["official", "big_vision", "timm", "dinov2", "huggingface"]

DIALECTS = {
    ("official", "vit"): official.VIT,
    ("official", "mixer"): official.MIXER,
    ("big_vision", "vit"): big_vision.VIT,
    ("big_vision", "mixer"): big_vision.MIXER,
}
NPZ_DIALECTS = ("official", "big_vision")
TORCH_DIALECTS = {"timm": timm.TIMM, "dinov2": timm.DINOV2, "huggingface": huggingface.FAMILIES}
NUMERICS = ("gelu", "norm_eps")


def write(
    path: str | Path,
    params: Any,
    model: Model,
    *,
    dialect: DialectName,
    preprocess: Preprocess | None = None,
    class_names: tuple[str, ...] = (),
    numerics: Literal["same", "theirs"] = "same",
) -> None:
    """Write nested `params` (numpy or jax arrays) of `model` as float32, whole or not at all.

    `path` ends in .npz or .safetensors, or is a folder of transformers that `dialect="huggingface"` makes,
    with `preprocess` (the family's if None) and `class_names` in it. With `numerics="theirs"` a file is also
    written where its readers will compute with another GELU or epsilon than `model`. Raises UserError if the
    parameters do not fit `model`, or if a file of the dialect cannot tell all of it.
    """
    path = Path(path)
    flat = flatten(params)
    free: set[str] = set(NUMERICS) if numerics == "theirs" else set()
    if dialect in NPZ_DIALECTS:
        into = DIALECTS[dialect, model.family]
        _check_fit(flat, model)
        _put(path, _npz_arrays(flat, model, into, free), model, told_heads=False)
    elif dialect in TORCH_DIALECTS:
        _check_fit(flat, model)
        family = next((d for d in TORCH_DIALECTS[dialect] if d.holds(model)), None)
        if family is None:
            fail(f"{dialect} has no family of this {model.family} model: choose another dialect")
        _write_torch(path, flat, model, family, free, (preprocess, class_names))
    else:
        fail(f"dialect={dialect!r} cannot be written: use {', '.join((*NPZ_DIALECTS, *TORCH_DIALECTS))}")


def _npz_arrays(flat: Flat, model: Model, into: Dialect, free: set[str]) -> Flat:
    theirs = {name: into.names.theirs(name) for name in flat}
    _check_homes(into.name, [name for name, other in theirs.items() if other is None])
    packed = into.pack(flat, model)
    found = {name: layout.squeeze(name, array.shape) for name, array in packed.items()}
    told = layout.infer(
        found,
        absent_posemb=into.absent_posemb,
        class_slot=into.class_slot,
        stored_hw=model.image_hw,
        image_hw=None,
    )
    _check_told(told, model, into.name, free)
    return {f"{into.prefix}{theirs[name]}": array for name, array in packed.items()}


def _write_torch(
    path: Path,
    flat: Flat,
    model: Model,
    into: TorchDialect,
    free: set[str],
    beside: tuple[Preprocess | None, tuple[str, ...]],
) -> None:
    homeless = [name for name in flat if into.table.theirs(name) is None]
    if into.variant == "vit" and model.pre_logits and model.classes:
        homeless += ["pool/pre_logits (beside a head)"]
    _check_homes(f"{into.name} ({into.variant})", homeless)
    arrays = _with_prefix(into.table.pack(into.pack(flat, model)), into, model)
    folder = path.suffix not in (".npz", ".safetensors")
    if folder and into.name != "huggingface":
        fail(f"{path} ends in neither .npz nor .safetensors, and {into.name} is not written as a folder")
    if folder:
        config = hub.config(into.variant, model, beside[1])  # raises before anything is written
        numerics = {name: getattr(model, name) for name in NUMERICS}
    else:
        config, numerics = {}, {}
    found = torch_files.translate({name: array.shape for name, array in arrays.items()}, model.heads)
    told = torch_load.infer(found, numerics, stored_hw=model.image_hw, image_hw=None)
    _check_told(told, model, f"{into.name} ({into.variant})", free)
    if not folder:
        _put(path, arrays, model, told_heads=True)
        return
    if path.is_file():
        fail(f"{path} is a file, not a folder: name another")
    path.mkdir(parents=True, exist_ok=True)
    _put(path / hub.WEIGHTS, arrays, model, told_heads=True)
    hub.write(path, config, hub.preprocessor(beside[0] or into.preprocess(model), model.image_hw))


def _with_prefix(arrays: Flat, into: TorchDialect, model: Model) -> Flat:
    """Names as the family's classifier has them; a model without a head has no prefix."""
    if into.ignored == timm.MASK:  # their own code misses it when loading, whatever is in it
        where = "embeddings." if into.name == "huggingface" else ""
        return arrays | {f"{where}mask_token": np.zeros((1, model.width), np.float32)}
    if into.name != "huggingface" or not model.classes:
        return arrays
    prefix = {"vit": "vit.", "deit": "deit.", "siglip classifier": "vision_model."}.get(into.variant, "")
    return {n if "classifier" in n else prefix + n: array for n, array in arrays.items()}


def _put(path: Path, arrays: Flat, model: Model, *, told_heads: bool) -> None:
    heads = model.heads if told_heads else None
    form = safetensors if path.suffix == ".safetensors" else npz
    form.write(path, arrays, image_hw=model.image_hw, heads=heads)


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


def _check_homes(dialect: str, homeless: list[str]) -> None:
    if homeless:
        fail(f"{dialect} files cannot hold {', '.join(homeless)}: choose another dialect")


def _check_told(told: Model, model: Model, dialect: str, free: set[str]) -> None:
    """Raise UserError unless reading the file back would give `model`, but for the fields in `free`."""
    wanted, read = dataclasses.asdict(model), dataclasses.asdict(told)
    lost = [k for k in wanted if k not in UNTOLD | free and wanted[k] != read[k]]
    if not lost:
        return
    fields = ", ".join(f"model.{k}={wanted[k]} (read as {read[k]})" for k in lost)
    hint = "choose another dialect"
    if not set(lost) - set(NUMERICS):
        hint += ", a folder of huggingface, or numerics=theirs to let its readers compute with theirs"
    fail(f"{dialect} files cannot tell {fields}: {hint}")
