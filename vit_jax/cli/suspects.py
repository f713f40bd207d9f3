"""What `probe --suspects` tells: the examples of the train split whose labels look wrong."""

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.data.source import class_name

if TYPE_CHECKING:
    from vit_jax.cli.probe import Probed


def find(args: argparse.Namespace, probed: "Probed", linear: dict[str, Any]) -> list[dict[str, Any]]:
    """The `--suspects` examples of the highest held-out loss, by the head that the linear probe chose."""
    from vit_jax.analysis import suspects

    split, names = probed.train, probed.names
    chosen = linear["columns"][linear["chosen"]]
    x_nd = split.columns[probed.columns[linear["chosen"]]]
    classes = max(len(names), int(split.label.max()) + 1)
    options = {"classes": classes, "epochs": args.epochs, "seed": args.seed}
    found = suspects.held_out(x_nd, split.label, rate=chosen["lr"], decay=chosen["weight_decay"], **options)
    return [
        {
            "path": probed.source.path(int(split.place[i])) or str(split.place[i]),
            "label": class_name(names, split.label[i]),
            "predicted": class_name(names, found.predicted[i]),
            "confidence": float(found.confidence[i]),
            "loss": float(found.loss[i]),
        }
        for i in map(int, found.ranked(np.asarray(split.label))[: args.suspects])
    ]


def text(rows: list[dict[str, Any]]) -> str:
    """One line per example, the most suspect first."""
    if not rows:
        return "suspected wrong labels: none, all of the train split is classified as labelled"
    lines = [
        f"  {row['loss']:7.3f}  {row['label']}, more likely {row['predicted']} ({row['confidence']:.1%})  "
        f"{row['path']}"
        for row in rows
    ]
    return "\n".join(["suspected wrong labels of the train split, by held-out loss:", *lines])
