"""What reading has in common for all dialects and both kinds of files."""

from typing import Any

import numpy as np

from vit_jax.fields import fail
from vit_jax.weights import layout, npz, safetensors
from vit_jax.weights.report import Note

Archive = npz.Archive | safetensors.Archive


def check(
    source: str,
    found: layout.Shapes,
    wanted: layout.Shapes,
    lying: dict[str, str],
    extra: list[str],
    archive: Archive,
) -> None:
    """Raise UserError with every missing, unexplained, misshapen and non-numeric array.

    `lying` is {our name: the array that holds it}, `extra` the arrays that no name explains.
    """
    missing = [name for name in wanted if name not in found]
    extra = extra + [lying[name] for name in found if name not in wanted]
    shapes = [f"{n} is {found[n]}, not {wanted[n]}" for n in found if n in wanted and found[n] != wanted[n]]
    dtypes = {n: archive.entries[array].dtype for n, array in lying.items()}
    kinds = [f"{n} is {dtype}" for n, dtype in dtypes.items() if not npz.is_number(dtype)]
    lists = {"missing": missing, "unexplained": extra, "misshapen": shapes, "not floating point": kinds}
    parts = [f"{len(names)} {what}: {', '.join(names)}" for what, names in lists.items() if names]
    if parts:
        fail(f"{source} does not fit the model that its shapes tell: {'; '.join(parts)}; nothing was loaded")


def dtype_note(ours: str, dtype: np.dtype) -> list[Note]:
    """A note where the array was not float32."""
    if dtype == np.float32:
        return []
    return [Note(ours, f"{'bfloat16' if npz.is_bfloat16(dtype) else dtype} to float32")]


def set_in(tree: dict[str, Any], path: str, value: Any) -> None:
    """Put `value` into a nested dict at a path with slashes."""
    *parents, leaf = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value
