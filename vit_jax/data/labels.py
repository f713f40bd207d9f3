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


class LabelColumn(NamedTuple):
    """What a table tells of its labels: those of each row, words, or numbers of the classes in `names`."""

    place: str  # for messages
    rows: list[list[Any]]
    several: bool  # whether an example may have several, or none
    names: tuple[str, ...] = ()  # empty: the labels are the names
    at: Sequence[int] = ()  # the number of each row in messages; empty: counted from 0

    def row(self, index: int) -> str:
        """Where a row stands, in words."""
        return f"row {self.at[index] if self.at else index}"


def of_text(column: LabelColumn) -> LabelColumn:
    """Labels of a file without types, cells of text: all whole numbers, or all words. Raises UserError."""
    cells = [(label, i) for i, labels in enumerate(column.rows) for label in labels]
    numbers = [(label, i) for label, i in cells if NUMBER.fullmatch(label)]
    if not numbers:
        return column
    if len(numbers) < len(cells):
        word, i = next((label, i) for label, i in cells if not NUMBER.fullmatch(label))
        number, j = numbers[0]
        fail(
            f"{column.place} has labels of different types, the number {number} ({column.row(j)}) and the "
            f"word {word} ({column.row(i)}): want numbers or words alone, such as class_{number}"
        )
    for label, i in numbers:
        _want_whole(float(label), label, column, i)
    whole = lambda label: label if WHOLE.fullmatch(label) else str(int(float(label)))
    return column._replace(rows=[[whole(label) for label in labels] for labels in column.rows])


def of_column(column: Any, place: str, names: tuple[str, ...] = ()) -> LabelColumn:
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
    labelled = LabelColumn(place, rows, several, names)
    if types.is_floating(item):
        for i, labels in enumerate(rows):
            for label in labels:
                _want_whole(label, str(label), labelled, i)
    if not names:
        text = lambda label: label if isinstance(label, str) else str(int(label))
        rows = [[text(label) for label in labels] for labels in rows]
    return labelled._replace(rows=rows)


def described(schema: Any, column: str) -> tuple[str, ...]:
    """The names that Hugging Face's metadata of a pyarrow schema gives to the numbers of a column, if any."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(column, {})
    while isinstance(feature, list) or "feature" in feature:  # lists of them
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    return tuple(feature.get("names") or ())


def want_alike(before: LabelColumn, column: LabelColumn) -> None:
    """Raise UserError for a split that gives one label per image where the training split gives several."""
    if before.several != column.several:
        many, one = (before, column) if before.several else (column, before)
        fail(f"{many.place} gives several labels per image, {one.place} one: want the same columns in both")


def classes(column: LabelColumn) -> tuple[str, ...]:
    """The names of the classes: those given, else all labels, numbers by size and words by the alphabet."""
    if column.names:
        return column.names
    found = {label for labels in column.rows for label in labels}
    if all(map(WHOLE.fullmatch, found)):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def encode(column: LabelColumn, names: Sequence[str]) -> np.ndarray:
    """int32 [n]; or, if examples have several, uint8 [n, c] that is 1 at each of an example's classes.

    `names` are those of the training split. Raises UserError for labels of no class, and for examples of one
    label that have none.
    """
    number = {name: i for i, name in enumerate(names)}
    if column.names:
        if column.names != tuple(names):
            fail(f"{column.place} names other classes than the training split: give splits of one data set")
        number = {i: i for i in range(len(names))}
    unknown = [(label, i) for i, labels in enumerate(column.rows) for label in labels if label not in number]
    if unknown:
        if column.names:
            label, i = unknown[0]
            fail(f"{column.place} has label {label} ({column.row(i)}), of no class: give a labelled split")
        found = some(sorted({str(label) for label, _ in unknown}))
        fail(f"{column.place} has labels that the training split lacks ({found}): rename or remove them")
    if column.several:
        indicator_nc = np.zeros((len(column.rows), len(names)), np.uint8)
        for i, labels in enumerate(column.rows):
            indicator_nc[i, [number[label] for label in labels]] = 1
        return indicator_nc
    if bare := [i for i, labels in enumerate(column.rows) if not labels]:
        fail(f"{column.place} has no label in {column.row(bare[0])}: label it, or leave it out")
    return np.array([number[label] for (label,) in column.rows], np.int32)


def _one(value: Any) -> list[Any]:
    return [] if value is None or value == "" else [value]


def _want_whole(value: float, text: str, column: LabelColumn, index: int) -> None:
    if value != value or value % 1:
        fail(
            f"{column.place} has the label {text} ({column.row(index)}): classes are words or whole numbers; "
            "to learn numbers (regression) is not done here"
        )
