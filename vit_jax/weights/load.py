"""From a reference to a model and its parameters.

A run's record tells its model; of a file, names and shapes alone do, and all of them are checked against the
model before any array is read.
"""

import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from vit_jax.errors import UserError
from vit_jax.fields import fail
from vit_jax.models import build
from vit_jax.sections import Model, Preprocess
from vit_jax.weights import adapt, dialects, layout, published, steps
from vit_jax.weights.adapt import Weights, Wish
from vit_jax.weights.dialect import Dialect, Shapes, Source
from vit_jax.weights.formats import hf_folder, npz, orbax, safetensors
from vit_jax.weights.formats.facts import FolderFacts
from vit_jax.weights.prefixes import Unwrapped, unwrap
from vit_jax.weights.report import Note, Report
from vit_jax.weights.resolve import Place, Step, resolve

HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # So400m, H, g, G
HEAD_FEATURES = 64  # a head of all other published models


class Translation(NamedTuple):
    """A file's dialect, {our name: where it lies}, {our name: its shape}, and what else the file has."""

    dialect: Dialect
    sources: dict[str, Source]
    shapes: Shapes
    unexplained: list[str]
    ignored: list[Note]


def read(ref: str | os.PathLike[str], wish: Wish | None = None) -> Weights:
    """The weights of `ref`, adapted to `wish`. Raises UserError.

    `ref` is a run (its best step, else its newest), one step of it, a file, a folder of transformers or timm,
    an address, a published name or a name of the Hub; `file.npz:img` is the part of a file under `img`. One
    without a head comes with none, and 0 classes, unless `wish` says for how many.
    """
    wish = wish or Wish()
    place = resolve(str(ref))
    weights = steps.read(place.path, read) if isinstance(place, Step) else _from_file(place, wish)
    return adapt.to(weights, wish)


def describe(ref: str | os.PathLike[str]) -> tuple[Model, Preprocess]:
    """What model `ref` stands for, of 0 classes without a head, and how it sees images; reads no array.

    Raises UserError as `read` does for what is no model, or not whole.
    """
    place = resolve(str(ref))
    if isinstance(place, Step):
        _, spec = steps.recorded(orbax.read_record(place.path))
        return spec.model, spec.preprocess
    opened = _open(place, Wish())
    h, w = opened.facts.seen_hw or opened.model.image_hw
    return dataclasses.replace(opened.model, image_size=h if h == w else (h, w)), opened.preprocess


class Opened(NamedTuple):
    """A file whose names and shapes are those of a model; no array is read yet."""

    archive: Unwrapped
    facts: FolderFacts
    found: Translation
    model: Model  # for images of the size that its positions are stored for
    preprocess: Preprocess


def _open(place: Place, wish: Wish) -> Opened:
    whole = npz.Archive(place.path) if place.path.suffix == ".npz" else safetensors.opened(place.path)
    facts = hf_folder.read(place.folder, place.path.name) if place.folder else FolderFacts({})
    archive, prefix = unwrap(whole, place.submodel)
    shapes = {name: entry.shape for name, entry in archive.entries.items()}
    try:
        found = translate(shapes, prefix, facts.heads or whole.heads or wish.heads)
        stored_hw = whole.image_hw or facts.image_hw
        model = infer(found, whole.fields | facts.numerics, stored_hw=stored_hw, image_hw=wish.image_hw)
        if wrong := [
            f"{k} is {getattr(model, k)}, not {n}" for k, n in facts.stated.items() if getattr(model, k) != n
        ]:
            fail(f"its arrays are of another model than its JSON files say: {', '.join(wrong)}")
    except UserError as error:
        fail(f"{place.name}: {error}", command=f"{place.name}: {error.command}")
    channels = layout.channels(found.shapes)
    _check(place.name, found, layout.shapes(model, channels=channels), archive)
    preprocess = _of_channels(facts.preprocess or found.dialect.preprocess(model), channels)
    return Opened(archive, facts, found, model, preprocess)


def _from_file(place: Place, wish: Wish) -> Weights:
    archive, facts, found, model, preprocess = _open(place, wish)
    params, converted = _arrays(archive, found, model.heads)
    dialect = found.dialect
    numerics = f" ({model.gelu} GELU, epsilon {model.norm_eps:g})" if dialect.numerics else ""
    report = Report(
        source=place.name,
        dialect=dialect.variant + numerics,
        parameters=build.count(params),
        loaded=tuple(found.sources),
        converted=(*archive.converted, *converted),
        ignored=(*archive.ignored, *found.ignored),
    )
    names = _names(facts.class_names, model.classes, place.name) or published.class_names(
        place.published, model.classes, imagenet=facts.imagenet
    )
    weights = Weights(model, params, names, preprocess, report, facts.loss)
    if wish.image_size is not None or facts.seen_hw in (None, model.image_hw):
        return weights
    h, w = facts.seen_hw
    return adapt.resize(weights, h if h == w else (h, w), method=wish.posemb_method)


def _names(given: tuple[str, ...], classes: int, name: str) -> tuple[str, ...]:
    """One name per class, or none. Raises UserError for more names than the head has classes."""
    if not given or not classes:
        return ()
    if len(given) > classes:
        fail(f"{name} has a head of {classes} classes, and its config.json names {len(given)}: mend it")
    return (*given, *(f"LABEL_{i}" for i in range(len(given), classes)))


def translate(shapes: Shapes, prefix: str, heads: int | None) -> Translation:
    """The dialect that knows most of the arrays, and where our parameters lie in them.

    Names have the `prefix` that `prefix_of` found; `heads` as told beside arrays that do not tell them.
    Raises UserError if nothing does.
    """
    under = {name.removeprefix(prefix): name for name in shapes if name.startswith(prefix)}
    # A prefix with a slash is a tree of its own; one with a dot is a module, beside which a head may lie.
    beside = [name for name in shapes if not name.startswith(prefix)]
    ignored = [Note(name, f"not under {prefix}") for name in beside if prefix.endswith("/")]
    names = under if ignored else under | {name: name for name in beside}
    bare = {name: shapes[array] for name, array in names.items()}
    dialect = _dialect(bare, prefix)
    heads = heads or (_heads(dialect, bare) if dialect.per_head else 1)
    sources: dict[str, Source] = {}
    unexplained = []
    for name, array in names.items():
        lying, reason = dialect.find(name, bare[name]), dialect.why_ignored(name)
        if reason:
            ignored.append(Note(array, reason))
        elif not lying or any(ours in sources for ours, _, _ in lying):
            unexplained.append(array)
        else:
            sources |= {ours: Source(array, row, block) for ours, row, block in lying}
    found = {
        ours: source.shape(shapes[source.array], dialect.heads_of(ours, heads))
        for ours, source in sources.items()
    }
    squeezed = {ours: layout.squeeze(ours, shape) for ours, shape in found.items()}
    return Translation(dialect, sources, squeezed, unexplained, ignored)


def _dialect(bare: Shapes, prefix: str) -> Dialect:
    """The one that knows most names; of equals, the one whose own files have this prefix, then the first."""
    known = lambda d: sum(bool(d.find(name, shape) or d.why_ignored(name)) for name, shape in bare.items())
    own = lambda d: len(d.prefix) if prefix.startswith(d.prefix) else -1
    return max(
        (d for d in dialects.DIALECTS if d.patch in bare and d.fits(bare)), key=lambda d: (known(d), own(d))
    )


def _heads(dialect: Dialect, bare: Shapes) -> int:
    """The heads of a published width; QK-norm's arrays tell the width of one."""
    width, normed = bare[dialect.patch][0], dialect.theirs("block_0/attention/query_norm/scale")
    features = bare.get(normed[0], ()) if normed else ()
    if features and features[0] and width % features[0] == 0:
        return width // features[0]
    heads = (
        dialect.heads.get(width)
        or HEADS.get(width)
        or (width // HEAD_FEATURES if width % HEAD_FEATURES == 0 else 0)
    )
    if not heads:
        untold = f"no array tells the heads of a model of width {width}"
        fail(
            f"{untold}: pass heads=, or a folder's config.json",
            command=f"{untold}: give a folder with a config.json, or what `convert --heads N` makes of it",
        )
    return heads


def infer(
    found: Translation,
    numerics: dict[str, Any],
    *,
    stored_hw: tuple[int, int] | None,
    image_hw: tuple[int, int] | None,
) -> Model:
    """The model of a translated file; `numerics` are those told beside it. Raises UserError."""
    dialect = found.dialect
    if untold := [name for name in dialect.asked if name not in numerics]:
        fail(
            f"no array tells model.{', model.'.join(untold)} of {dialect.label}: give a folder with an "
            f"{hf_folder.OPEN_CLIP} or config.json beside the weights"
        )
    quirks: dict[str, Any] = {"absent_posemb": dialect.absent_posemb, "class_slot": dialect.class_slot}
    model = layout.infer(found.shapes, **quirks, stored_hw=stored_hw, image_hw=image_hw)
    positions = {"posemb_method": dialect.posemb_method} if model.posemb == "learned" else {}
    model = dataclasses.replace(model, **positions, **dialect.numerics)
    return dataclasses.replace(model, **(dialect.derived(model) | numerics))


def _check(name: str, found: Translation, wanted: Shapes, archive: Unwrapped) -> None:
    """Raise UserError with every missing, unexplained, misshapen and non-numeric array."""
    shapes, lying = found.shapes, {ours: source.array for ours, source in found.sources.items()}
    dtypes = {ours: archive.entries[array].dtype for ours, array in lying.items()}
    lists = {
        "missing": [n for n in wanted if n not in shapes],
        "unexplained": found.unexplained + [lying[n] for n in shapes if n not in wanted],
        "misshapen": [
            f"{n} is {shapes[n]}, not {wanted[n]}" for n in shapes if n in wanted and shapes[n] != wanted[n]
        ],
        "not floating point": [f"{n} is {dtype}" for n, dtype in dtypes.items() if not npz.is_number(dtype)],
    }
    parts = [f"{len(names)} {what}: {', '.join(names)}" for what, names in lists.items() if names]
    if parts:
        fail(f"{name} does not fit the model that its shapes tell: {'; '.join(parts)}; nothing was loaded")


def _arrays(archive: Unwrapped, found: Translation, heads: int) -> tuple[dict[str, Any], list[Note]]:
    """Our parameters, nested, and what was done to them."""
    params: dict[str, np.ndarray] = {}
    held: dict[str, np.ndarray] = {}  # an array of several parameters is read once
    last = {source.array: ours for ours, source in found.sources.items()}
    notes = []
    for ours, source in found.sources.items():
        if source.array not in held:
            held[source.array] = archive.read(source.array)
        array, shape = (
            source.read(held[source.array], found.dialect.heads_of(ours, heads)),
            found.shapes[ours],
        )
        if source.block is not None:
            notes.append(Note(ours, "one block's slice of a stack"))
        if array.ndim != len(shape):
            notes.append(Note(ours, f"{array.ndim} dimensions to {len(shape)}"))
        dtype = archive.entries[source.array].dtype
        if dtype != np.float32:
            notes.append(Note(ours, f"{'bfloat16' if npz.is_bfloat16(dtype) else dtype} to float32"))
        params[ours] = np.ascontiguousarray(array, np.float32).reshape(shape)
        if last[source.array] == ours:
            del held[source.array]
    return unflatten_dict(params, sep="/"), notes


def _of_channels(preprocess: Preprocess, channels: int) -> Preprocess:
    """The same preprocessing for grey images: statistics of three channels mean nothing there."""
    if channels == preprocess.channels:
        return preprocess
    mean, std = (tuple([float(np.mean(v))]) for v in (preprocess.mean, preprocess.std))
    return dataclasses.replace(preprocess, channels=channels, mean=mean, std=std)
