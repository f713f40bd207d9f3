"""From a reference to a model and its parameters.

The file's names and shapes alone tell the model; all of them are checked against it before any array is read.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vit_jax.errors import UserError
from vit_jax.fields import fail
from vit_jax.weights import (
    adapt,
    big_vision,
    fetch,
    layout,
    npz,
    official,
    old_mixer,
    posemb,
    published,
    safetensors,
    torch_files,
    torch_load,
)
from vit_jax.weights.adapt import Weights
from vit_jax.weights.arrays import Archive, check, dtype_note, set_in
from vit_jax.weights.dialect import Dialect
from vit_jax.weights.report import Note, Report

DIALECTS = (official.VIT, official.MIXER, big_vision.VIT, big_vision.MIXER, old_mixer.MIXER)
PREFIXES = ("opt/target/", "params/img/", "params/", "")  # the first that holds a patch embedding is taken
PATCHES = ("embedding/kernel", "stem/kernel")


class Source(NamedTuple):
    """Where one parameter lies: an array of the archive, or one slice of a stacked one."""

    array: str
    block: int | None
    shape: tuple[int, ...]  # before leading ones are dropped


def read(
    ref: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    classes: int | None = None,
    posemb_method: str | None = None,
    keep_pre_logits: bool = True,
    heads: int | None = None,
    headless: bool = False,
) -> Weights:
    """Weights of a path, a URL or a published name, adapted to `image_size` and `classes`.

    `file.npz:img` is the part of a file under `img`; a folder is one of transformers or timm. Positions are
    resized as the file's family does unless `posemb_method` says otherwise. A head of another class count is
    replaced by zeros, and then `keep_pre_logits=False` also drops the hidden layer before it, as fine-tuning
    does. `heads` is for torch files of a width that does not tell them; `headless` lets a file without a head
    pass as it is. Raises UserError.
    """
    if posemb_method is not None:
        posemb.check_method(posemb_method)
    place = fetch.local(str(ref))
    image_hw = (image_size, image_size) if isinstance(image_size, int) else image_size
    weights, own_method = _as_stored(place, image_hw, heads)
    if not (weights.model.classes or classes or headless):
        fail(f"{ref} has no head: pass classes=, the number of classes to make one for")
    method = posemb_method or own_method
    return adapt.to(weights, classes, image_size, method=method, keep_pre_logits=keep_pre_logits)


def _as_stored(
    place: fetch.Place, image_hw: tuple[int, int] | None, heads: int | None
) -> tuple[Weights, str]:
    """The weights as they lie in the file, and how their family resizes positions."""
    archive = safetensors.Archive(place.path) if _is_safetensors(place.path) else npz.Archive(place.path)
    if torch_files.prefix_of(list(archive.entries)) is not None:
        return torch_load.as_stored(place, archive, image_hw, heads)
    names, ignored = _select(archive, place.submodel)
    dialect, sources, extra = _translate(archive, names)
    found = {ours: layout.squeeze(ours, source.shape) for ours, source in sources.items()}
    try:
        model = layout.infer(
            found,
            absent_posemb=dialect.absent_posemb,
            class_slot=dialect.class_slot,
            stored_hw=archive.image_hw,
            image_hw=image_hw,
        )
    except UserError as error:
        fail(f"{place.name}: {error}")
    lying = {ours: source.array for ours, source in sources.items()}
    check(place.name, found, layout.shapes(model, channels=layout.channels(found)), lying, extra, archive)
    params, converted = _read(archive, sources, found)
    report = Report(
        source=place.name,
        dialect=dialect.name,
        parameters=adapt.count(params),
        loaded=tuple(sources),
        converted=tuple(converted),
        ignored=tuple(ignored),
    )
    preprocess = dataclasses.replace(dialect.preprocess, channels=layout.channels(found))
    names_of = published.class_names(place.published, model.classes)
    return Weights(model, params, names_of, preprocess, report), "official"


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _select(archive: Archive, submodel: str) -> tuple[dict[str, str], list[Note]]:
    """{name without prefix: name in the archive} of the model's arrays, and notes on all others."""
    prefixes = [f"{p}{submodel}/" for p in ("params/", "opt/target/", "")] if submodel else PREFIXES
    for prefix in prefixes:
        if any(prefix + patch in archive.entries for patch in PATCHES):
            break
    else:
        first = ", ".join(list(archive.entries)[:3])
        where = f" under {submodel!r}" if submodel else ""
        fail(
            f"{archive.path} has no patch embedding ({' or '.join(PATCHES)}){where} among its "
            f"{len(archive.entries)} arrays ({first}, ...): give weights of a ViT, hybrid or Mixer"
        )
    names = {name.removeprefix(prefix): name for name in archive.entries if name.startswith(prefix)}
    others = [Note(name, f"not under {prefix}") for name in archive.entries if not name.startswith(prefix)]
    return names, others


def _translate(archive: Archive, names: dict[str, str]) -> tuple[Dialect, dict[str, Source], list[str]]:
    """The dialect that knows most of `names`, {our name: source}, and the names that it does not know."""
    lying: dict[str, Source] = {}
    for name, array in names.items():
        shape = archive.entries[array].shape
        slices = big_vision.unstack(name, shape)
        lying |= {s.name: Source(array, s.block, shape[1:]) for s in slices} or {
            name: Source(array, None, shape)
        }
    known = {dialect: [name for name in lying if dialect.names.ours(name)] for dialect in DIALECTS}
    if any(array.startswith("params/") for array in names.values()):
        known = dict(sorted(known.items(), key=lambda item: item[0].name != "big_vision"))
    dialect = max(known, key=lambda d: len(known[d]))
    sources: dict[str, Source] = {}
    extra = []
    for name, source in lying.items():
        ours = dialect.names.ours(name)
        if ours is None or ours in sources:
            extra.append(name)
        else:
            sources[ours] = source
    return dialect, sources, extra


def _read(
    archive: Archive, sources: dict[str, Source], found: layout.Shapes
) -> tuple[dict[str, Any], list[Note]]:
    params: dict[str, Any] = {}
    converted, stacks = [], {}
    for ours, source in sources.items():
        if source.block is None:
            array = archive.read(source.array)
        else:
            if source.array not in stacks:
                stacks[source.array] = archive.read(source.array)
            array = np.ascontiguousarray(stacks[source.array][source.block])
            converted.append(Note(ours, "one block's slice of a stack"))
        if array.shape != found[ours]:
            converted.append(Note(ours, f"{len(array.shape)} dimensions to {len(found[ours])}"))
        converted += dtype_note(ours, archive.entries[source.array].dtype)
        set_in(params, ours, array.reshape(found[ours]))
    return params, converted
