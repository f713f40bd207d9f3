"""Class names and confidences of images, from a run or a weights file."""

import json
import sys
from collections.abc import Iterator
from typing import Any

from vit_jax import config, fields, paths
from vit_jax.cli.common import (
    FIGURES,
    IMAGES,
    PANEL_PX,
    REF,
    data_of_files,
    image_names,
    make_parser,
    output_path,
    progress,
    run_command,
    save_sheet,
)
from vit_jax.errors import UserError
from vit_jax.paths import Path
from vit_jax.sections import seen_size

EXAMPLES = """examples:
  python -m vit_jax.cli.predict runs/quickstart digit.png
  python -m vit_jax.cli.predict runs/b16 photos 'more/*.jpg' --top 3 --out labelled.png
  find . -name '*.jpg' | python -m vit_jax.cli.predict runs/b16 - --json
  python -m vit_jax.cli.predict runs/b16 cat.jpg --coverage 0.9

Where `evaluate --calibrate` left a calibration, confidences are calibrated, and --coverage P prints a set of
classes that contains the true one with probability P or more. For a model with several labels per image the
set, printed without --coverage, is the classes above their thresholds, which --calibrate chooses (0.5
without). Images are seen as the model's evaluation sees them; --data.field=value says otherwise, and
--data.on_error=skip goes on without what cannot be read.
"""
MOST_PANELS = 64
BATCH = 64  # images at once
NO_CLASS = "none"  # of an empty set


def main() -> None:
    """Parse the command line, predict a batch at a time, print."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help=REF)
    parser.add_argument("images", nargs="+", help=IMAGES)
    parser.add_argument("--top", type=int, default=5, help="classes per image (default: 5)")
    parser.add_argument("--coverage", type=float, help="print the set that holds the truth this often")
    parser.add_argument(
        "--out",
        type=output_path(*FIGURES),
        help=f"draw the first {MOST_PANELS} images with their labels here",
    )
    parser.add_argument("--image_size", type=int, help="resize the position embedding for this size")
    parser.add_argument("--json", action="store_true", help="one JSON object per image")
    args, rest = parser.parse_known_args()
    fields.at_least("--top", args.top, 1)
    if args.image_size and args.coverage is not None:
        raise UserError("--coverage is calibrated for the size of the model: leave --image_size out")
    names = image_names(args.images)

    import vit_jax  # after parsing: --help stays quick
    from vit_jax.analysis import calibration

    loaded = vit_jax.load(args.ref, image_size=args.image_size)
    loaded.need_head()
    fitted, several = loaded.calibration, loaded.spec.multi_label
    if several and args.coverage is not None:
        raise UserError(f"--coverage is for one class per image, {args.ref} gives several: leave it out")
    if args.coverage is not None and fitted is None:
        raise UserError(f"{args.ref} has no calibration for --coverage: run evaluate --calibrate on it first")
    best: list[tuple[str, str]] = []
    for name, logits_c in _logits(loaded, names, rest):
        p_c = calibration.CONFIDENCE[loaded.spec.loss](logits_c[None] / loaded.temperature)[0]
        row = _row(loaded, name, p_c, args.top)
        if args.coverage is not None and fitted:
            held = fitted.sets(p_c[None], args.coverage)[0].nonzero()[0]
            row["set"] = [loaded.class_name(int(c)) for c in held]
        if several:
            row["set"] = [found.name for found in loaded.above(p_c)]
        print(json.dumps(row) if args.json else _text(row))
        likeliest = row["predictions"][0]
        title = f"{likeliest['class']} {likeliest['confidence']:.1%}"
        best.append((name, ", ".join(row["set"]) or NO_CLASS if several else title))
    if args.out:
        _draw(best[:MOST_PANELS], args.out)


def _logits(loaded: Any, names: list[str], rest: list[str]) -> Iterator[tuple[str, Any]]:
    """(name, float32 logits [c]) of each image; threads read ahead while the devices work."""
    from vit_jax.data.sources import Files
    from vit_jax.training.evaluate import walk

    data = data_of_files(loaded, rest)
    preprocess = config.preprocess_of(data)
    forward = lambda params, image_bhwc: loaded.model.apply({"params": params}, image_bhwc)
    how: dict[str, Any] = {
        "preprocess": preprocess,
        "image_size": seen_size(loaded.spec.model, preprocess),
        "batch_size": min(BATCH, len(names)),
    }
    if not sys.stdout.isatty():  # rows on a terminal are progress enough
        how["on_progress"] = progress("predict: images", len(names))
    for at_b, logits_bc in walk(forward, loaded.params, Files(names), data, **how):
        yield from ((names[i], logits_c) for i, logits_c in zip(at_b, logits_bc, strict=True))


def _draw(best: list[tuple[str, str]], path: Path) -> None:
    from vit_jax.data.sources import read_image

    if not best:
        raise UserError(f"--out {path}: no image could be read")
    images = [read_image(paths.of(name)) for name, _ in best]
    for image in images:
        image.thumbnail((2 * PANEL_PX, 2 * PANEL_PX))
    save_sheet(images, [title for _, title in best], path, columns=4 if len(best) <= 16 else 8)


def _row(loaded: Any, name: str, p_c: Any, top: int) -> dict[str, Any]:
    rows = [{"class": p.name, "index": p.index, "confidence": p.confidence} for p in loaded.best(p_c, top)]
    return {"path": name, "predictions": rows}


def _text(row: dict[str, Any]) -> str:
    lines = [row["path"], *(f"  {p['confidence']:7.2%}  {p['class']}" for p in row["predictions"])]
    return "\n".join([*lines, *([f"  set: {', '.join(row['set']) or NO_CLASS}"] if "set" in row else [])])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
