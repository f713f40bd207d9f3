"""What a folder tells of its model beside the arrays, and how the JSON files that tell it are read."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from vit_jax.fields import fail
from vit_jax.paths import Path
from vit_jax.sections import LossName, Preprocess

Tree = dict[str, Any]


class FolderFacts(NamedTuple):
    """What a folder tells; None or empty where it does not."""

    numerics: Tree
    heads: int | None = None
    image_hw: tuple[int, int] | None = None
    class_names: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    seen_hw: tuple[int, int] | None = None  # the size of the images that preprocessing gives
    loss: LossName = "softmax"
    stated: dict[str, int] = {}  # noqa: RUF012 - fields of the model that the arrays tell, too
    imagenet: bool = False  # whether 1000 classes are those of ImageNet-1k


def class_names(labels: Any, path: Path) -> tuple[str, ...]:
    """The name of each class, of a list or {number: name}; of one without, what transformers calls it.

    Empty where no class has a name of its own. Raises UserError for keys that are no numbers.
    """
    pairs = enumerate(labels) if isinstance(labels, list | tuple) else (labels or {}).items()
    try:
        names = {int(i): str(name) for i, name in pairs}
    except ValueError as error:
        fail(f"{path}: id2label has a key that is no number ({error}): give each class its number")
    if all(name == f"LABEL_{i}" for i, name in names.items()):
        return ()
    return tuple(names.get(i, f"LABEL_{i}") for i in range(max(names) + 1))


def refuse_unknown(tree: Tree, known: set[str], path: Path, where: str = "") -> None:
    """Raise UserError, with their names, for keys that say something and are none of `known`."""
    unknown = [f"{where}{k}={v}" for k, v in tree.items() if k not in known and v not in (None, False)]
    if unknown:
        fail(f"{path}: {', '.join(unknown)} is not done here: remove what the model does not need")


def hw_of(size: Any) -> tuple[int, int] | None:
    """(height, width) of a side, of both, or of nothing."""
    return (size, size) if isinstance(size, int) else tuple(size) if size else None


def few(values: Sequence[float]) -> tuple[float, ...]:
    """One value where all channels have the same."""
    return tuple(map(float, values[:1] if len(set(values)) == 1 else values))


def read_json(path: Path) -> Tree:
    """The JSON object in a file. Raises UserError for anything else."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}: give a folder of config.json and weights")
    except ValueError as error:
        fail(f"{path} is not JSON ({error}): get the file again")
    if not isinstance(tree, dict):
        fail(f"{path} is not a JSON object: get the file again")
    return tree
