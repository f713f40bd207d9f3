"""The runs of a sweep: a grid of field values, from the command line or from files. Imports no jax."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vit_jax.errors import UserError


class Point(NamedTuple):
    """One run of the grid: the name of its directory, and the arguments that make it differ."""

    name: str
    arguments: tuple[str, ...]


def points(sweeps: Sequence[str]) -> list[Point]:
    """All combinations of `config.field=value,value` texts, or of lines of files of them.

    Raises UserError for a text that is neither.
    """
    axes = [_axis(line) for text in sweeps for line in _lines(text)]
    fields = [name for name, _ in axes]
    if len(set(fields)) < len(fields):
        raise UserError(f"--sweep names a field twice: {', '.join(fields)}")
    found = []
    for i, values in enumerate(itertools.product(*(values for _, values in axes))):
        pairs = [f"{name}={value}" for name, value in zip(fields, values, strict=True)]
        short = "_".join(_short(pairs))
        safe = "".join(c if c.isalnum() or c in "=_.-" else "-" for c in short)
        found.append(Point(f"{i:03d}_{safe}", tuple(f"--{pair}" for pair in pairs)))
    return found


def _lines(text: str) -> list[str]:
    if "=" in text:
        return [text]
    try:
        return [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as e:
        raise UserError(f"--sweep={text} is neither config.field=value,value nor a file of such lines") from e


def _axis(line: str) -> tuple[str, list[str]]:
    name, equals, values = line.removeprefix("--").partition("=")
    if not name.startswith("config.") or not equals or not values:
        raise UserError(f"--sweep {line}: write config.field=value,value")
    chosen = values.split(",")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"--sweep {line} names a value twice")
    return name, chosen


def _short(pairs: list[str]) -> list[str]:
    """Without the sections of the fields: lr=0.1 for config.optim.lr=0.1."""
    return [f"{pair.partition('=')[0].rpartition('.')[2]}={pair.partition('=')[2]}" for pair in pairs]
