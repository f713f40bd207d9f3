"""From a reference to a run's step, or to a file on this machine: a file, a folder, an address, a name."""

import re
from pathlib import Path
from typing import NamedTuple

from vit_jax import paths
from vit_jax.fields import fail
from vit_jax.weights import hub, published
from vit_jax.weights.download import download, from_bucket
from vit_jax.weights.formats import hf_folder, orbax, safetensors
from vit_jax.weights.published import Published

FILE = re.compile(r"(.+\.(?:npz|safetensors|safetensors\.index\.json))(?::([\w/.]+))?")


class Step(NamedTuple):
    """One step of a run, on this machine or in a bucket."""

    path: paths.Path


class Place(NamedTuple):
    """A file on this machine, what the user called it, and what else is known of it."""

    path: Path
    name: str
    submodel: str = ""  # the part of the file that is meant
    published: Published | None = None  # the table's row
    folder: Path | None = None  # of transformers or timm, which tells more of the file


def resolve(ref: str) -> Step | Place:
    """What `ref` stands for, downloaded if need be; a run for its best step, else its newest.

    Raises UserError where it stands for nothing.
    """
    if not ref:
        fail("the name of the model is empty: give a run, a file, an address or a published name")
    ref = re.sub(r"^(\w\w+:)/(?!/)", r"\1//", ref)  # as pathlib writes an address
    if paths.in_web(ref) or FILE.fullmatch(ref):
        return _file(ref)
    path = paths.of(ref)
    with paths.reached(path):
        if path.name.isdigit() and not path.exists() and (steps := orbax.steps_in(path.parent)):
            fail(f"{ref} is not there: {path.parent} has the steps {', '.join(map(str, steps))}")
        if paths.is_folder(path):
            return _in_folder(path) if _is_model_folder(path) else Step(orbax.step_dir(path))
    return _file(ref)


def _file(ref: str) -> Place:
    if ref.endswith(hf_folder.PICKLES):
        fail(f"{ref} is {hf_folder.PICKLED}")
    match = FILE.fullmatch(ref)
    name, submodel = (match[1], match[2] or "") if match else (ref, "")
    known = published.find(name)
    if "://" in name:
        return Place(download(name), ref, submodel, known)
    if known is not None and not Path(name).exists():
        return Place(download(known.url), ref, submodel, known)
    if not match and not Path(name).exists():
        return _elsewhere(ref)
    return Place(Path(name), ref, submodel, known)


def _elsewhere(ref: str) -> Place:
    """A model of the Hub, where `ref` may name one; what is here goes first."""
    absent = f"{ref} is no run directory, file or published checkpoint"
    first = ref.partition("/")[0]
    if hub.NAME.fullmatch(ref) and first.lower() not in published.SHELVES:
        if "@" not in ref and Path(first).is_dir():
            here = f"{first} is a folder here, so the Hugging Face Hub is not asked"
            fail(f"{absent}: {here} unless for {ref}@main")
        weights = hub.download(ref, absent)
        return Place(weights, ref, folder=weights.parent)
    near = published.nearest(ref)
    names = f"did you mean {' or '.join(near)}? " if near else ""
    fail(f"{absent}: {names}`info --help` lists all names")


def _is_model_folder(path: paths.Path) -> bool:
    """Whether `path` is a folder of transformers or timm, which has a config.json but no checkpoints."""
    ours = (path / orbax.CHECKPOINTS).exists() or (path / orbax.BEST).exists()
    described = any((path / name).is_file() for name in (hf_folder.CONFIG, hf_folder.OPEN_CLIP))
    return described and not ours


def _in_folder(path: paths.Path) -> Place:
    json_files = (hf_folder.CONFIG, hf_folder.PREPROCESSOR, hf_folder.OPEN_CLIP)
    bring = lambda *names: path if isinstance(path, Path) else from_bucket(path, (*json_files, *names))
    folder = bring(*hf_folder.ALL_WEIGHTS)
    weights = next((folder / name for name in hf_folder.ALL_WEIGHTS if (folder / name).is_file()), None)
    if weights is not None:
        if weights.name == hf_folder.INDEX:
            folder = bring(hf_folder.INDEX, *sorted(set(safetensors.shards_of(weights).values())))
        return Place(folder / weights.name, str(path), folder=folder)
    if list(path.glob("*.bin")):
        fail(f"{path} has only {hf_folder.PICKLED}")
    fail(f"{path} has a config.json but no {hf_folder.WEIGHTS}: give a folder with both")
