"""What stands before the names of a model: trees of flax code, modules of torch's, wrappers of training code.

A wrapper (`module.`, `_orig_mod.`, `model.`, ...) is taken off all names before a dialect reads them. Where
a file has one model several times, as student and teacher, the averaged one is meant.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from vit_jax.fields import fail
from vit_jax.weights import dialects
from vit_jax.weights.formats import npz, safetensors
from vit_jax.weights.formats.npz import Entry
from vit_jax.weights.report import Note

Archive = npz.Archive | safetensors.Archive | safetensors.Shards
TREES = ("opt/target/", "params/img/", "params/", "")  # where flax code keeps a model; the first is taken
AVERAGED = r"(?:(?:state_dict|model|params)_ema|ema(?:_model)?|teacher|averaged_model)\."
WRAPPER = (
    rf"(?:{AVERAGED}|(?:module|_orig_mod|(?:timm_)?model|state_dict|net|backbone|visual|trunk|student)\.)"
)
# What a training run keeps beside its model.
BESIDE = {
    r"(?:optimizer|optim|lr_scheduler|scheduler|scaler|grad_scaler)[._].+": "the state of an optimizer",
    r"(?:.+\.)?(?:dino|ibot)_head\..+": "a head of self-supervised pretraining",
    r"(?:n_averaged|epoch|step|global_step|iteration|best_\w+)": "a counter of training",
}
# Models whose names are known, but which are not built here.
UNBUILT = {
    r"(?:.+\.)?(?:rel_pos_bias|shared_position_bias|encoder\.relative_position_bias)"
    r"\.relative_position_bias_table": "BEiT as it is pretrained, whose blocks share one bias for relative "
    "positions",
    r"(?:.+\.)?patch_embed\.backbone\.(?!(?:stem|stages|conv|norm)\.).+": "a hybrid of another stem than "
    "ResNetV2",
    r"(?:.+\.)?rope\.freqs": "a model with learned rotary frequencies",
    r"(?:.+\.)?attn\.lambda_q1": "a model with differential attention",
    r"(?:.+\.)?attn\.in_proj\.weight": "a model with parallel attention and MLP",
}
TOWER = "visual."  # beside it lie a text tower and what pairs the two


class Unwrapped(NamedTuple):
    """An archive under the names that are left when a wrapper is taken off."""

    archive: Archive
    entries: dict[str, Entry]
    full: dict[str, str]  # {name: the one in the archive}
    converted: tuple[Note, ...]  # a note for each name that was shortened
    ignored: tuple[Note, ...]

    def read(self, name: str) -> np.ndarray:
        """One array as float32."""
        return self.archive.read(self.full[name])


def unwrap(archive: Archive, submodel: str = "") -> tuple[Unwrapped, str]:
    """The arrays of one model, and what still stands before their names. Raises UserError without one."""
    for known, what in UNBUILT.items():
        if name := next((name for name in archive.entries if re.fullmatch(known, name)), ""):
            fail(f"{archive.path} holds {what}, which is not built here (it has {name}): give another model")
    prefixes = _found(archive.entries)
    prefix = prefix_of(archive.entries, submodel)
    if prefix is None:
        first = ", ".join(list(archive.entries)[:3])
        where = f" under {submodel!r}" if submodel else ""
        fail(
            f"{archive.path} has no patch embedding{where} among its {len(archive.entries)} arrays "
            f"({first}, ...): give weights of a ViT, hybrid or Mixer"
        )
    wrapper = _matched(rf"{WRAPPER}+", prefix)
    bare = {"", *(dialect.prefix for dialect in dialects.DIALECTS)}
    copies = {_matched(WRAPPER, other) for other in prefixes if other in bare or re.match(WRAPPER, other)}
    copies -= {_matched(WRAPPER, wrapper)}
    whys = {name: _why_ignored(name, wrapper, copies) for name in archive.entries}
    ignored = tuple(Note(name, why) for name, why in whys.items() if why)
    full = {name.removeprefix(wrapper): name for name, why in whys.items() if not why}
    if len(full) + len(ignored) < len(archive.entries):
        fail(f"{archive.path} has arrays of the same name with and without {wrapper}: keep one model")
    wrapped = [name for name in full.values() if wrapper and name.startswith(wrapper)]
    converted = tuple(Note(name, f"the prefix {wrapper} taken off") for name in wrapped)
    entries = {name: archive.entries[array] for name, array in full.items()}
    return Unwrapped(archive, entries, full, converted, ignored), prefix.removeprefix(wrapper)


def _why_ignored(name: str, wrapper: str, copies: set[str]) -> str:
    """Why an array is no part of the model under `wrapper`; empty if it may be one."""
    inside = bool(wrapper) and name.startswith(wrapper)
    if not inside and any(name.startswith(copy) for copy in copies):
        return f"another copy of the model than {wrapper or 'the one without a prefix'}"
    if TOWER in wrapper and not inside:
        return "beside the image tower"
    return next((why for known, why in BESIDE.items() if re.fullmatch(known, name)), "")


def _matched(wrapper: str, name: str) -> str:
    match = re.match(wrapper, name)
    return match[0] if match else ""


def _found(names: Collection[str]) -> list[str]:
    marks = sorted({(dialect.patch, dialect.beside_patch) for dialect in dialects.DIALECTS})
    return [
        prefix
        for name in names
        for patch, beside in marks
        if name == patch or name.endswith((f"/{patch}", f".{patch}"))
        if (prefix := name.removesuffix(patch)) + (beside or patch) in names
    ]


def prefix_of(names: Collection[str], submodel: str = "") -> str | None:
    """What stands before the names of a model's body; None if there is no patch embedding among them."""
    found = _found(names)
    dotted = sorted(
        (prefix for prefix in found if prefix.endswith(".")),
        key=lambda prefix: -sum(name.startswith(prefix) for name in names),
    )
    if submodel:
        wanted = [f"{tree}{submodel}/" for tree in ("params/", "opt/target/", "")]
        wanted += [prefix for prefix in dotted if f".{prefix}".endswith(f".{submodel}.")]
    else:
        averaged = [prefix for prefix in dotted if re.match(rf"{WRAPPER}*{AVERAGED}", prefix)]
        wanted = [*TREES, *averaged, *dotted]
    return next((prefix for prefix in wanted if prefix in found), None)
