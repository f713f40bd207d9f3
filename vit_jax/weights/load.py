"""From a reference to a model and its parameters.

The file's names and shapes alone tell the model; all of them are checked against it before any array is read.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vit_jax.errors import UserError
from vit_jax.fields import fail
from vit_jax.weights import adapt, big_vision, fetch, layout, npz, official, old_mixer, posemb, published
from vit_jax.weights.adapt import Weights
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
    posemb_method: str = "official",
    keep_pre_logits: bool = True,
) -> Weights:
    """Weights of a path, a URL or a published name, adapted to `image_size` and `classes`; prints the report.

    `file.npz:img` is the part of a file under `img`. A head of another class count is replaced by zeros, and
    then `keep_pre_logits=False` also drops the hidden layer before it, as fine-tuning does. Raises UserError.
    """
    posemb.check_method(posemb_method)
    place = fetch.local(str(ref))
    image_hw = (image_size, image_size) if isinstance(image_size, int) else image_size
    weights = _as_stored(place, image_hw)
    if classes is not None and classes != weights.model.classes:
        weights = adapt.reset_head(weights, classes, keep_pre_logits=keep_pre_logits)
    if not weights.model.classes:
        fail(f"{ref} has no head: pass classes=, the number of classes to make one for")
    if image_size is not None:
        weights = adapt.resize(weights, image_size, method=posemb_method)
    print(weights.report, file=sys.stderr)
    return weights


def _as_stored(place: fetch.Place, image_hw: tuple[int, int] | None) -> Weights:
    archive = npz.Archive(place.path)
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
    _check(place.name, found, layout.shapes(model, channels=layout.channels(found)), sources, extra, archive)
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
    return Weights(model, params, published.class_names(place.published, model.classes), preprocess, report)


def _select(archive: npz.Archive, submodel: str) -> tuple[dict[str, str], list[Note]]:
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


def _translate(archive: npz.Archive, names: dict[str, str]) -> tuple[Dialect, dict[str, Source], list[str]]:
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


def _check(
    source: str,
    found: layout.Shapes,
    wanted: layout.Shapes,
    sources: dict[str, Source],
    extra: list[str],
    archive: npz.Archive,
) -> None:
    """Raise UserError with every missing, unexplained, misshapen and non-numeric array."""
    missing = [name for name in wanted if name not in found]
    extra = extra + [sources[name].array for name in found if name not in wanted]
    shapes = [f"{n} is {found[n]}, not {wanted[n]}" for n in found if n in wanted and found[n] != wanted[n]]
    kinds = [f"{n} is {archive.entries[s.array].dtype}" for n, s in sources.items()]
    kinds = [k for k, s in zip(kinds, sources.values(), strict=True) if not _is_number(archive, s)]
    lists = {"missing": missing, "unexplained": extra, "misshapen": shapes, "not floating point": kinds}
    parts = [f"{len(names)} {what}: {', '.join(names)}" for what, names in lists.items() if names]
    if parts:
        fail(f"{source} does not fit the model that its shapes tell: {'; '.join(parts)}; nothing was loaded")


def _is_number(archive: npz.Archive, source: Source) -> bool:
    return npz.is_number(archive.entries[source.array].dtype)


def _read(
    archive: npz.Archive, sources: dict[str, Source], found: layout.Shapes
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
        dtype = archive.entries[source.array].dtype
        if dtype != np.float32:
            was = "bfloat16" if npz.is_bfloat16(dtype) else str(dtype)
            converted.append(Note(ours, f"{was} to float32"))
        set_in(params, ours, array.reshape(found[ours]))
    return params, converted


def set_in(tree: dict[str, Any], path: str, value: Any) -> None:
    """Put `value` into a nested dict at a path with slashes."""
    *parents, leaf = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value
