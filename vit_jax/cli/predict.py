"""Class names and confidences of images, from a run or a weights file."""

import json
from collections.abc import Iterator
from typing import Any

from PIL import Image

from vit_jax.cli.common import (
    FIGURES,
    IMAGES,
    PANEL_PX,
    image_files,
    make_parser,
    output_path,
    run_command,
    save_sheet,
)
from vit_jax.errors import UserError
from vit_jax.paths import Path

EXAMPLES = """examples:
  python -m vit_jax.cli.predict runs/quickstart digit.png
  python -m vit_jax.cli.predict runs/b16 photos 'more/*.jpg' --top 3 --out labelled.png
  find . -name '*.jpg' | python -m vit_jax.cli.predict runs/b16 - --json
  python -m vit_jax.cli.predict runs/b16 cat.jpg --coverage 0.9

Where `evaluate --calibrate` left a calibration, confidences are calibrated, and --coverage gives the set of
classes that holds the true one with at least that chance.
"""
MOST_PANELS = 64
BATCH = 64  # images in memory at a time


def main() -> None:
    """Parse the command line, predict a batch at a time, print."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help="run directory, one step of it, file, folder, address or published name")
    parser.add_argument("images", nargs="+", help=IMAGES)
    parser.add_argument("--top", type=int, default=5, help="classes an image (default: 5)")
    parser.add_argument("--coverage", type=float, help="print the set that holds the truth this often")
    parser.add_argument(
        "--out",
        type=output_path(*FIGURES),
        help=f"draw the first {MOST_PANELS} images with their labels here",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object an image")
    args = parser.parse_args()
    if args.top < 1:
        raise UserError(f"--top={args.top} must be at least 1")

    import vit_jax  # after parsing: --help stays quick
    from vit_jax.analysis import calibration
    from vit_jax.data.sources import read_image

    fitted = calibration.load(args.ref)
    if args.coverage is not None and fitted is None:
        raise UserError(f"{args.ref} has no calibration for --coverage: run evaluate --calibrate on it first")
    batches = _batches(image_files(args.images))
    batch = next(batches, [])
    images = [read_image(path) for path in batch]  # a bad first image stops here, before the model is loaded
    loaded = vit_jax.load(args.ref)
    panels: list[tuple[Image.Image, str]] = []
    while batch:
        p_nc = loaded.probabilities(images, temperature=fitted.temperature if fitted else 1.0)
        for i, path in enumerate(batch):
            row = _row(loaded, path, p_nc[i], args.top)
            if args.coverage is not None and fitted:
                held = fitted.sets(p_nc[i : i + 1], args.coverage)[0].nonzero()[0]
                row["set"] = [loaded.class_name(int(c)) for c in held]
            print(json.dumps(row) if args.json else _text(row))
            if args.out and len(panels) < MOST_PANELS:
                best = row["predictions"][0]
                images[i].thumbnail((2 * PANEL_PX, 2 * PANEL_PX))
                panels.append((images[i], f"{best['class']} {best['confidence']:.1%}"))
        batch = next(batches, [])
        images = [read_image(path) for path in batch]
    if args.out:
        images, titles = zip(*panels, strict=True)
        save_sheet(images, titles, args.out, columns=4 if len(panels) <= 16 else 8)


def _batches(paths: Iterator[Path]) -> Iterator[list[Path]]:
    batch: list[Path] = []
    for path in paths:
        batch.append(path)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _row(loaded: Any, path: Path, p_c: Any, top: int) -> dict[str, Any]:
    rows = [{"class": p.name, "index": p.index, "confidence": p.confidence} for p in loaded.best(p_c, top)]
    return {"path": str(path), "predictions": rows}


def _text(row: dict[str, Any]) -> str:
    lines = [row["path"], *(f"  {p['confidence']:7.2%}  {p['class']}" for p in row["predictions"])]
    return "\n".join([*lines, *([f"  set: {', '.join(row['set'])}"] if "set" in row else [])])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
