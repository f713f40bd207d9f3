"""From the labels that a table holds, words or numbers, to those of a source.

Dims: n examples, c classes.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.data.source import some
from vit_jax.fields import fail

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
WHOLE = re.compile(r"[-+]?\d+")


class Told(NamedTuple):
    """What a table tells of its labels: those of each row, words, or numbers of the classes in `names`."""

    place: str  # for messages
    rows: list[list[Any]]
    several: bool  # whether an example may have several, or none
    names: tuple[str, ...] = ()  # empty: the labels are the names
    at: Sequence[int] = ()  # the number of each row in messages; empty: counted from 0

    def row(self, index: int) -> str:
        """Where a row stands, in words."""
        return f"row {self.at[index] if self.at else index}"


def of_text(told: Told) -> Told:
    """Labels of a file without types, cells of text: all whole numbers, or all words. Raises UserError."""
    cells = [(label, i) for i, labels in enumerate(told.rows) for label in labels]
    numbers = [(label, i) for label, i in cells if NUMBER.fullmatch(label)]
    if not numbers:
        return told
    if len(numbers) < len(cells):
        word, i = next((label, i) for label, i in cells if not NUMBER.fullmatch(label))
        number, j = numbers[0]
        fail(
            f"{told.place} has labels of different types, the number {number} ({told.row(j)}) and the word "
            f"{word} ({told.row(i)}): want numbers or words alone, such as class_{number}"
        )
    for label, i in numbers:
        _want_whole(float(label), label, told, i)
    whole = lambda label: label if WHOLE.fullmatch(label) else str(int(float(label)))
    return told._replace(rows=[[whole(label) for label in labels] for labels in told.rows])


def of_column(column: Any, place: str, names: tuple[str, ...] = ()) -> Told:
    """Labels of a pyarrow column of words or whole numbers, or of lists of them. Raises UserError."""
    import pyarrow.types as types  # only needed for such files, and slow to import

    kind = column.type
    several = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    item = kind.value_type if several else kind
    item = item.value_type if types.is_dictionary(item) else item
    wanted = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer)
    if not any(map(bool, [*(is_kind(item) for is_kind in wanted), types.is_floating(item)])):
        fail(f"{place} has labels of type {kind}: want words, whole numbers, or lists of them")
    values = column.to_pylist()
    rows = [[x for x in value or () if x is not None] if several else _one(value) for value in values]
    told = Told(place, rows, several, names)
    if types.is_floating(item):
        for i, labels in enumerate(rows):
            for label in labels:
                _want_whole(label, str(label), told, i)
    if not names:
        text = lambda label: label if isinstance(label, str) else str(int(label))
        rows = [[text(label) for label in labels] for labels in rows]
    return told._replace(rows=rows)


def described(schema: Any, column: str) -> tuple[str, ...]:
    """The names that Hugging Face's metadata of a pyarrow schema gives to the numbers of a column, if any."""
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = told.get("info", {}).get("features", {}).get(column, {})
    while isinstance(feature, list) or "feature" in feature:  # lists of them
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    return tuple(feature.get("names") or ())


def want_alike(before: Told, told: Told) -> None:
    """Raise UserError for a split that gives one label an image where the training split gives several."""
    if before.several != told.several:
        many, one = (before, told) if before.several else (told, before)
        fail(f"{many.place} gives several labels an image, {one.place} one: want the same columns in both")


def classes(told: Told) -> tuple[str, ...]:
    """The names of the classes: as told, else all labels, numbers by size and words by the alphabet."""
    if told.names:
        return told.names
    found = {label for labels in told.rows for label in labels}
    if all(map(WHOLE.fullmatch, found)):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def encode(told: Told, names: Sequence[str]) -> np.ndarray:
    """int32 [n]; or, if examples have several, uint8 [n, c] that is 1 at each of an example's classes.

    `names` are those of the training split. Raises UserError for labels of no class, and for examples of one
    label that have none.
    """
    number = {name: i for i, name in enumerate(names)}
    if told.names:
        if told.names != tuple(names):
            fail(f"{told.place} names other classes than the training split: give splits of one data set")
        number = {i: i for i in range(len(names))}
    unknown = [(label, i) for i, labels in enumerate(told.rows) for label in labels if label not in number]
    if unknown:
        if told.names:
            label, i = unknown[0]
            fail(f"{told.place} has label {label} ({told.row(i)}), of no class: give a labelled split")
        found = some(sorted({str(label) for label, _ in unknown}))
        fail(f"{told.place} has labels that the training split lacks ({found}): rename or remove them")
    if told.several:
        indicator_nc = np.zeros((len(told.rows), len(names)), np.uint8)
        for i, labels in enumerate(told.rows):
            indicator_nc[i, [number[label] for label in labels]] = 1
        return indicator_nc
    if bare := [i for i, labels in enumerate(told.rows) if not labels]:
        fail(f"{told.place} has no label in {told.row(bare[0])}: label it, or leave it out")
    return np.array([number[label] for (label,) in told.rows], np.int32)


def _one(value: Any) -> list[Any]:
    return [] if value is None or value == "" else [value]


def _want_whole(value: float, text: str, told: Told, index: int) -> None:
    if value != value or value % 1:
        fail(
            f"{told.place} has the label {text} ({told.row(index)}): classes are words or whole numbers; to "
            "learn numbers (regression) is not done here"
        )
