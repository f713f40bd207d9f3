"""What evaluate says of models and data of several labels per image."""

import argparse
from typing import Any

import numpy as np

from vit_jax.errors import UserError


def check(ref: str, spec: Any, source: Any) -> None:
    """Raise UserError where one of model and data is of several labels per image, and the other of one."""
    if source.multi_label and spec.loss != "sigmoid":
        raise UserError(f"the data gives several labels per image, {ref} names one: give data of one label")
    if spec.multi_label and not source.multi_label:
        raise UserError(f"{ref} was trained on several labels per image, the data gives one: give such data")


def report(
    args: argparse.Namespace, loaded: Any, names: list[str], to: np.ndarray, batches: Any
) -> dict[str, Any]:
    """All that --json prints: of (labels [b, c], logits [b, classes of the model]) and the options in `args`.

    `names` are those of the data's classes, `to` the model's number of each; other classes of the model do
    not count. Raises UserError for options that are for one label.
    """
    from vit_jax.analysis import calibration, predictions, statistics
    from vit_jax.training import multilabel

    for option in ("compare", "confusion", "worst", "csv"):
        if getattr(args, option):
            raise UserError(
                f"--{option} is for one label per image, and the data gives several: leave it out"
            )
    found = predictions.collect_sets((label_bc, logits_bc[:, to]) for label_bc, logits_bc in batches)
    z_nc, own_nc = found.logits.astype(np.float64), found.label > 0
    temperature, threshold_c = loaded.temperature, np.asarray(loaded.thresholds)[to]
    p_nc = calibration.sigmoid(z_nc / temperature)
    facts = multilabel.summarise(z_nc, own_nc) | _decided(p_nc, own_nc, threshold_c, names)
    facts["worst_class"] = names[int(facts["worst_class"])]
    facts["ece"] = statistics.expected_calibration_error(p_nc.ravel(), own_nc.ravel())
    facts |= {"images_per_s": found.images_per_s, "calibrated": loaded.calibration is not None}
    if args.calibrate:
        fitted = calibration.fit(found.logits, found.label, loss="sigmoid")
        f1 = multilabel.f1_scores(
            calibration.sigmoid(z_nc / fitted.temperature) >= np.array(fitted.thresholds), own_nc
        )
        whole = fitted.of_classes(to, loaded.spec.model.classes)
        where = calibration.save(args.ref, whole, loaded.params)
        facts["calibration"] = {
            "temperature": fitted.temperature,
            "thresholds": dict(zip(names, fitted.thresholds, strict=True)),
            "f1_micro": f1.micro,
            "f1_macro": f1.macro,
            "file": str(where),
        }
    if args.save:
        predictions.save(args.save, found)
    return facts


def _decided(p_nc: np.ndarray, own_nc: np.ndarray, threshold_c: np.ndarray, names: list[str]) -> Any:
    """What comes of the thresholds, and a row per class."""
    from vit_jax.training import multilabel

    f1, precision_c = (
        multilabel.f1_scores(p_nc >= threshold_c, own_nc),
        multilabel.average_precisions(p_nc, own_nc),
    )
    rows = [
        {
            "class": name,
            "examples": int(own_nc[:, c].sum()),
            "ap": None if np.isnan(precision_c[c]) else float(precision_c[c]),
            "f1": None if np.isnan(f1.by_class[c]) else float(f1.by_class[c]),
            "threshold": float(threshold_c[c]),
        }
        for c, name in enumerate(names)
    ]
    return {"f1_micro": f1.micro, "f1_macro": f1.macro, "classes": rows}


def text(facts: dict[str, Any], *, table: bool) -> str:
    """The facts to read; with `table` a line per class, the worst first."""
    from vit_jax.training.evaluate import format_metrics

    names = [row["class"] for row in facts["classes"]]
    at = "their calibrated thresholds" if facts["calibrated"] else "0.5: --calibrate chooses thresholds"
    lines = [
        format_metrics(facts | {"worst_class": names.index(facts["worst_class"])}, names),
        f"classes are predicted from {at}; calibration error {facts['ece']:.2%}, "
        f"{facts['images_per_s']:,.0f} images/s",
    ]
    if "calibration" in facts:
        c = facts["calibration"]
        lines.append(
            f"temperature {c['temperature']:.3f} and a threshold per class, F1 micro {c['f1_micro']:.2%}, "
            f"macro {c['f1_macro']:.2%} on the examples they were fitted on, written to {c['file']}"
        )
    if table:
        shown = lambda value: "      -" if value is None else f"{value:7.2%}"
        rows = sorted(facts["classes"], key=lambda row: -1.0 if row["ap"] is None else row["ap"])
        lines.append("       AP       F1  threshold")
        lines += [
            f"  {shown(row['ap'])}  {shown(row['f1'])}  {row['threshold']:9.3f}  of {row['examples']:6,}  "
            f"{row['class']}"
            for row in rows
        ]
    return "\n".join(lines)
