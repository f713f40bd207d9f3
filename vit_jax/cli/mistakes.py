"""What `evaluate` writes of single examples: a row each, the worst errors, the confusion matrix."""

import csv
import io
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vit_jax import paths
from vit_jax.cli.common import PANEL_PX, save_figure, save_sheet, shown
from vit_jax.data.decode import Encoded, open_pillow
from vit_jax.data.source import Source
from vit_jax.paths import Path

if TYPE_CHECKING:
    from vit_jax.analysis.predictions import Predictions

COLUMNS = ("path", "label", "predicted", "confidence", "loss")
MOST_PANELS = 40  # of a sheet
NUMBERED = 30  # classes of a matrix whose cells and axes can be read


def rows(found: "Predictions", names: list[str], at: np.ndarray) -> list[dict[str, Any]]:
    """COLUMNS of the examples at these places; without a file `path` is the number in the split."""
    where = found.place if found.path is None else found.path
    assert where is not None
    return [
        {
            "path": str(where[i]),
            "label": names[found.label[i]],
            "predicted": names[found.predicted[i]],
            "confidence": float(found.confidence[i]),
            "loss": float(found.loss[i]),
        }
        for i in at
    ]


def write(path: Path, found: "Predictions", names: list[str]) -> None:
    """All rows as CSV, in the order of the split. Raises UserError if it cannot be written."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list[str](COLUMNS))
    writer.writeheader()
    writer.writerows(rows(found, names, np.arange(len(found.label))))
    paths.write(path, text.getvalue())


def worst(found: "Predictions") -> np.ndarray:
    """Places of the errors, the most confident first."""
    wrong = np.flatnonzero(found.predicted != found.label)
    return wrong[np.argsort(-found.confidence[wrong], kind="stable")]


def draw_worst(path: Path, found: "Predictions", names: list[str], source: Source) -> list[dict[str, Any]]:
    """A sheet of the most confident errors, whose rows are returned. Raises UserError if it fails."""
    at = worst(found)[:MOST_PANELS]
    mistakes = rows(found, names, at)
    if not mistakes:
        print("note: --worst: no example is predicted wrongly, so there is no sheet", file=sys.stderr)
        return mistakes
    assert found.place is not None
    pictures = [_picture(source, int(index)) for index in found.place[at]]
    titles = [f"true: {r['label']}\npredicted: {r['predicted']} {r['confidence']:.1%}" for r in mistakes]
    save_sheet(pictures, titles, path, columns=4 if len(mistakes) <= 16 else 8, option="--worst")
    return mistakes


def _picture(source: Source, index: int) -> Image.Image:
    """The whole picture, not the part that the model sees."""
    found, _ = source.get(index)
    if isinstance(found, Encoded):
        image = open_pillow(found.data, found.name)
        image.thumbnail((2 * PANEL_PX, 2 * PANEL_PX))
        return image
    return Image.fromarray(shown(found))


def draw_confusion(found: "Predictions", names: list[str], path: Path) -> None:
    """The confusion matrix, a row per true class, coloured by share, with counts up to NUMBERED classes.

    Raises UserError if it cannot be written.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    from vit_jax.analysis.statistics import confusion

    counts = confusion(found.label, found.predicted, len(names))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    numbered = len(names) <= NUMBERED
    side = max(6.0, 0.4 * len(names)) if numbered else 6.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(share, vmin=0, vmax=1, cmap="viridis"), label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    if numbered:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        for true, predicted in zip(*counts.nonzero(), strict=True):
            color = "black" if share[true, predicted] > 0.5 else "white"  # on yellow, on blue
            count = f"{counts[true, predicted]}"
            axes.text(predicted, true, count, ha="center", va="center", fontsize=7, color=color)
    save_figure(figure, path, "--confusion")
