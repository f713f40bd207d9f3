"""Accuracy, loss and calibration of a model on a data set, each example counted exactly once."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax import config, fields
from vit_jax.cli import evaluate_sets
from vit_jax.cli.common import (
    FIGURES,
    REF,
    data_for,
    make_parser,
    output_path,
    progress,
    run_command,
    tell,
)
from vit_jax.data.source import class_name, labels_in, some
from vit_jax.errors import UserError
from vit_jax.sections import seen_size

EXAMPLES = """examples:
  python -m vit_jax.cli.evaluate runs/quickstart
  python -m vit_jax.cli.evaluate runs/b16 --data.name=imagenet_v2 --data.eval_split=test --json
  python -m vit_jax.cli.evaluate runs/b16 --compare runs/s16 --table --confusion confusion.png
  python -m vit_jax.cli.evaluate runs/b16 --worst worst.png --csv examples.csv
  python -m vit_jax.cli.evaluate runs/b16 '--data.eval_split=validation[:20%]' --calibrate

data fields that are not given are those of the run. --calibrate fits a temperature and conformal quantiles,
which predict then uses: afterwards evaluate on other examples than those of the fit. For several labels per
image it chooses a threshold for each class instead of quantiles, and mean average precision and F1 are
reported.

--csv has path, label, predicted, confidence and loss of each example; where examples have no files, path is
the number of the example in the split. --worst draws the most confident errors.
"""


def main() -> None:
    """Parse the command line, evaluate, print."""
    args, rest = _parse()

    from vit_jax.analysis import calibration, predictions  # after parsing: --help stays quick
    from vit_jax.cli import mistakes

    size = {name: getattr(args, name) for name in ("batch_size", "image_size", "patch_size")}
    here = opened(args.ref, rest, **size)
    if here.source.multi_label:
        sets = evaluate_sets.report(args, here.loaded, here.names, here.to, here.batches)
        print(json.dumps(sets) if args.json else evaluate_sets.text(sets, table=args.table))
        return
    found, names = collected(here, keep_logits=args.calibrate)
    facts = _facts(found, names)
    if args.compare:
        reopen = lambda: opened(args.compare, rest, data=here.data, **size)
        facts["compare"] = _compared(args, found, names, reopen)
    if args.calibrate and found.logits is not None:
        fitted = calibration.fit(found.logits, found.label, loss=here.loaded.spec.loss)
        where = calibration.save(args.ref, fitted, here.loaded.params)
        facts["calibration"] = {"temperature": fitted.temperature, "file": str(where)}
    if args.save:
        predictions.save(args.save, found)
    if args.csv:
        mistakes.write(args.csv, found, names)
    if args.confusion:
        mistakes.draw_confusion(found, names, args.confusion)
    if args.worst:
        facts["errors"] = mistakes.draw_worst(args.worst, found, names, here.source)
    print(json.dumps(facts) if args.json else _text(facts, table=args.table))


def _parse() -> tuple[argparse.Namespace, list[str]]:
    """(the command line, its data fields). Raises UserError."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help=REF)
    parser.add_argument("--batch_size", type=int, default=128, help="examples per batch (default: 128)")
    parser.add_argument("--image_size", type=int, help="resize the position embedding for this size")
    parser.add_argument("--patch_size", type=int, help="resize the patch embedding for patches of this size")
    parser.add_argument("--table", action="store_true", help="print a line per class, the worst first")
    parser.add_argument(
        "--confusion", type=output_path(*FIGURES), help="draw the confusion matrix to this file"
    )
    parser.add_argument("--save", type=output_path(".npz"), help="write a row per example to this .npz file")
    parser.add_argument("--csv", type=output_path(".csv"), help="the same with names, to this .csv file")
    parser.add_argument(
        "--worst", type=output_path(*FIGURES), help="draw the most confident errors to this file"
    )
    parser.add_argument("--compare", help="another model, or what --save wrote for it: paired McNemar test")
    parser.add_argument("--calibrate", action="store_true", help="fit confidences, and save them beside ref")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args, rest = parser.parse_known_args()
    fields.at_least("--batch_size", args.batch_size, 1)
    if args.calibrate and (args.image_size or args.patch_size):
        raise UserError(
            "--calibrate is for the model's own sizes, as predict is: leave --image_size and --patch_size out"
        )
    return args, rest


class Opened(NamedTuple):
    """A model and its data: names of the data's classes, the model's number of each, (labels, logits).

    `at` gets the places in the split of each batch's examples as it is read.
    """

    loaded: Any
    data: Any
    source: Any
    names: list[str]
    to: np.ndarray
    batches: Any
    at: list[np.ndarray]


def opened(
    ref: str,
    rest: list[str],
    *,
    batch_size: int,
    image_size: int | None = None,
    patch_size: int | None = None,
    data: Any = None,
) -> Opened:
    """A reference at a size, on `data`, or on its own data with fields as `rest` says. Raises UserError."""
    import vit_jax
    from vit_jax.data import sources
    from vit_jax.training.evaluate import walk

    loaded = vit_jax.load(ref, image_size=image_size, patch_size=patch_size)
    loaded.need_head()
    model, cfg = loaded.model, loaded.spec.model
    if data is None:
        data = data_for(loaded, rest)
        preprocess, source = config.preprocess_of(data), sources.open_split(data, train=False)
        tell(source)
    else:  # the same examples, seen as this model wants to see them
        preprocess, source = loaded.spec.preprocess, sources.open_split(data, train=False)
    evaluate_sets.check(ref, loaded.spec, source)
    to = labels_in(loaded.spec.class_names, source.class_names, classes=cfg.classes)
    _tell_classes(source.class_names, loaded.spec.class_names, to)
    forward = lambda params, image_bhwc: model.apply({"params": params}, image_bhwc)
    size = seen_size(cfg, preprocess)
    seen: Any = {"preprocess": preprocess, "image_size": size, "batch_size": batch_size}
    on_progress = progress(f"evaluate {ref}: examples", source.size)
    at: list[np.ndarray] = []
    made = walk(forward, loaded.params, source, data, on_progress=on_progress, which=at.append, **seen)
    return Opened(loaded, data, source, list(source.class_names), to, made, at)


def collected(opened: Opened, *, keep_logits: bool) -> tuple[Any, list[str]]:
    """(predictions, class names of the model)."""
    from vit_jax.analysis import predictions

    spec = opened.loaded.spec
    logits = ((_renumbered(label_b, opened.to), logits_bc) for label_b, logits_bc in opened.batches)
    found = predictions.collect(logits, keep_logits=keep_logits, loss=spec.loss)
    found = predictions.located(found, np.concatenate(opened.at), opened.source)
    names = spec.class_names or tuple(opened.names)
    return found, [class_name(names, i) for i in range(spec.model.classes)]


def _renumbered(label_b: np.ndarray, to: np.ndarray) -> np.ndarray:
    """The model's labels. Raises UserError for labels of no class, as of splits that were never labelled."""
    for label in (label_b.min(initial=0), label_b.max(initial=0)):
        if not 0 <= label < len(to):
            raise UserError(f"the data has label {label}, but {len(to)} classes: give a labelled split")
    return to[label_b]


def _tell_classes(data: Sequence[str], model: Sequence[str], to: np.ndarray) -> None:
    """Say which classes the data lacks, or that classes are not matched by their names."""
    if data and model and not set(data) & set(model):
        differ = f"the data's classes have other names than the model's, such as {data[0]!r} and {model[0]!r}"
        print(f"note: {differ}: they are taken in their order", file=sys.stderr)
    present = set(to.tolist())
    missing = [name for label, name in enumerate(model) if label not in present]
    if missing:
        has = f"the data has {len(to)} of the model's {len(model)} classes, and none of"
        print(f"note: {has} {some(missing)}", file=sys.stderr)


def _facts(found: Any, names: list[str]) -> dict[str, Any]:
    from vit_jax.analysis import predictions, statistics

    correct = found.rank < 1
    low, high = statistics.bootstrap_interval(correct)
    per_class = [
        {"class": names[i], "examples": int(n), "top1": float(correct[found.label == i].mean())}
        for i, n in enumerate(np.bincount(found.label, minlength=len(names)))
        if n
    ]
    metrics = predictions.metrics(found, classes=len(names))
    return metrics | {
        "worst_class": names[int(metrics["worst_class"])],
        "top1_interval": [low, high],
        "ece": statistics.expected_calibration_error(found.confidence, correct),
        "images_per_s": found.images_per_s,
        "classes": per_class,
    }


def _compared(
    args: argparse.Namespace, found: Any, names: list[str], reopen: Callable[[], Opened]
) -> dict[str, Any]:
    """McNemar's test of `found` and --compare, which `reopen` opens unless it is what --save wrote.

    Raises UserError unless both are of the same examples.
    """
    from vit_jax.analysis import predictions, statistics

    other, other_names = predictions.load(args.compare), names
    if other is None:
        other, other_names = collected(reopen(), keep_logits=False)
    labelled = lambda rows, known: [class_name(known, label) for label in rows.label.tolist()]
    if labelled(found, names) != labelled(other, other_names):
        raise UserError(f"--compare {args.compare} is of other examples: evaluate both on the same split")
    test = statistics.mcnemar(found.rank < 1, other.rank < 1)
    top1 = float((other.rank < 1).mean())
    return {"ref": args.ref, "other": args.compare, "top1": top1, **test._asdict()}


def _text(facts: dict[str, Any], *, table: bool) -> str:
    from vit_jax.training.evaluate import format_metrics

    names = [row["class"] for row in facts["classes"]]
    measured = facts | {"worst_class": names.index(facts["worst_class"])}
    low, high = facts["top1_interval"]
    lines = [
        format_metrics(measured, names),
        f"top-1 is within {low:.2%} .. {high:.2%} (95%, bootstrap), calibration error {facts['ece']:.2%}, "
        f"{facts['images_per_s']:,.0f} images/s",
    ]
    if "compare" in facts:
        c = facts["compare"]
        lines.append(
            f"{c['other']}: top-1 {c['top1']:.2%}; only {c['ref']} is right on {c['only_first']}, only "
            f"{c['other']} on {c['only_second']}: p = {c['p_value']:.3g} (McNemar)"
        )
    if "calibration" in facts:
        c = facts["calibration"]
        lines.append(f"temperature {c['temperature']:.3f}, written to {c['file']}")
    if table:
        rows = sorted(facts["classes"], key=lambda row: row["top1"])
        lines += [f"  {row['top1']:7.2%}  of {row['examples']:6,}  {row['class']}" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
