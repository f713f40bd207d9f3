"""Which torch dialect a file is of, and where each of our parameters lies in it."""

import re
from typing import NamedTuple

from vit_jax.fields import fail
from vit_jax.weights import huggingface, layout, timm
from vit_jax.weights.dialect import TorchDialect
from vit_jax.weights.parts import Shape, Source, shape_of
from vit_jax.weights.report import Note

DIALECTS = (*timm.TIMM, *timm.DINOV2, *huggingface.FAMILIES)
PATCHES = (
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.weight",
)
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # So400m, H, g, G
HEAD_FEATURES = 64  # a head of all other published models


class Translation(NamedTuple):
    """A dialect, {our name: where it lies}, {our name: its shape}, and what else the file has."""

    dialect: TorchDialect
    sources: dict[str, Source]
    shapes: dict[str, Shape]
    extra: list[str]
    ignored: list[Note]


def prefix_of(names: list[str]) -> str | None:
    """What stands before the names of the model's body, or None if these are no names of a torch ViT."""
    for name in names:
        for patch in PATCHES:
            if name == patch or name.endswith(f".{patch}"):
                return name.removesuffix(patch)
    return None


def translate(shapes: dict[str, Shape], heads: int | None) -> Translation:
    """The dialect that knows most of the arrays, and where our parameters lie. `prefix_of` must find one.

    `heads` as told beside the arrays, which do not tell it. Raises UserError if nothing does.
    """
    prefix = prefix_of(list(shapes)) or ""
    stored = {name.removeprefix(prefix): name for name in shapes}
    bare = {name: shapes[array] for name, array in stored.items()}
    fitting = [d for d in DIALECTS if d.fits(bare)]
    dialect = max(fitting, key=lambda d: sum(bool(d.table.ours(n) or _reason(d, n)) for n in bare))
    heads = heads or _heads(bare)
    sources: dict[str, Source] = {}
    extra, ignored = [], []
    for name, array in stored.items():
        parts, reason = dialect.table.ours(name), _reason(dialect, name)
        if reason:
            ignored.append(Note(array, reason))
        elif not parts or any(ours in sources for ours, _ in parts):
            extra.append(array)
        else:
            sources |= {ours: Source(array, part) for ours, part in parts}
    found = {ours: shape_of(s.part, shapes[s.array], heads) for ours, s in sources.items()}
    squeezed = {ours: layout.squeeze(ours, shape) for ours, shape in found.items()}
    return Translation(dialect, sources, squeezed, extra, ignored)


def _heads(bare: dict[str, Shape]) -> int:
    """The heads of a published width; QK-norm's arrays tell the width of one."""
    width = next(shape[0] for name, shape in bare.items() if name in PATCHES)
    normed = bare.get("blocks.0.attn.q_norm.weight")
    if normed and normed[0] and width % normed[0] == 0:
        return width // normed[0]
    heads = HEADS.get(width) or (width // HEAD_FEATURES if width % HEAD_FEATURES == 0 else 0)
    if not heads:
        fail(f"no array tells the heads of a model of width {width}: pass heads=, or a folder's config.json")
    return heads


def _reason(dialect: TorchDialect, name: str) -> str:
    return next((why for known, why in dialect.ignored.items() if re.fullmatch(known, name)), "")
