"""Weights of a torch dialect as they lie in a file or a folder."""

import dataclasses
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.fields import fail
from vit_jax.sections import Model
from vit_jax.weights import adapt, fetch, hub, layout, torch_files
from vit_jax.weights.adapt import Weights
from vit_jax.weights.arrays import Archive, check, dtype_note, set_in
from vit_jax.weights.parts import Shape
from vit_jax.weights.report import Report
from vit_jax.weights.torch_files import Translation

NOTHING = hub.Told({})


def as_stored(
    place: fetch.Place, archive: Archive, image_hw: tuple[int, int] | None, heads: int | None
) -> tuple[Weights, str]:
    """The weights, and how their family resizes positions. Raises UserError."""
    told = hub.read(place.folder) if place.folder else NOTHING
    shapes = {name: entry.shape for name, entry in archive.entries.items()}
    stored_hw = archive.image_hw or told.image_hw
    try:
        found = torch_files.translate(shapes, heads or told.heads or archive.heads)
        model = infer(found, told.numerics, stored_hw=stored_hw, image_hw=image_hw)
    except UserError as error:
        fail(f"{place.name}: {error}")
    channels = layout.channels(found.shapes)
    wanted = layout.shapes(model, channels=channels)
    lying = {ours: source.array for ours, source in found.sources.items()}
    check(place.name, found.shapes, wanted, lying, found.extra, archive)
    params, converted = _read(archive, found, model.heads)
    report = Report(
        source=place.name,
        dialect=f"{found.dialect.variant} ({model.gelu} GELU, epsilon {model.norm_eps:g})",
        parameters=adapt.count(params),
        loaded=tuple(found.sources),
        converted=tuple(converted),
        ignored=tuple(found.ignored),
    )
    preprocess = told.preprocess or found.dialect.preprocess(model)
    preprocess = _of_channels(preprocess, channels)
    names = told.class_names if len(told.class_names) == model.classes else ()
    return Weights(model, params, names, preprocess, report), found.dialect.posemb_method


def infer(
    found: Translation,
    numerics: dict[str, Any],
    *,
    stored_hw: tuple[int, int] | None,
    image_hw: tuple[int, int] | None,
) -> Model:
    """The model of a translated file; `numerics` are those that the file's folder tells. Raises UserError."""
    model = layout.infer(
        found.shapes, absent_posemb="none", class_slot=False, stored_hw=stored_hw, image_hw=image_hw
    )
    return dataclasses.replace(model, **(found.dialect.numerics | numerics))


def _of_channels(preprocess: Any, channels: int) -> Any:
    """The same preprocessing for grey images: statistics of three channels mean nothing there."""
    if channels == preprocess.channels:
        return preprocess
    mean, std = (tuple([float(np.mean(v))]) for v in (preprocess.mean, preprocess.std))
    return dataclasses.replace(preprocess, channels=channels, mean=mean, std=std)


def _read(archive: Archive, found: Translation, heads: int) -> tuple[dict[str, Any], list]:
    params: dict[str, Any] = {}
    held: dict[str, np.ndarray] = {}  # arrays of several parts are read once
    converted = []
    for ours, source in found.sources.items():
        if source.array not in held:
            held[source.array] = archive.read(source.array)
        shape: Shape = found.shapes[ours]
        array = source.part.read(held[source.array], heads)
        set_in(params, ours, np.ascontiguousarray(array, np.float32).reshape(shape))
        converted += dtype_note(ours, archive.entries[source.array].dtype)
        if source.part.nth + 1 == source.part.of:
            held.pop(source.array)
    return params, converted
