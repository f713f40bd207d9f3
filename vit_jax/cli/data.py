"""Look at what the model will see: a contact sheet, class counts, image sizes, and the loader's speed."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from vit_jax import config, fields
from vit_jax.cli.common import make_parser, output_path, run_command, shown
from vit_jax.data import loader, sources, transforms
from vit_jax.data.decode import BrokenExample
from vit_jax.data.source import Label, Source
from vit_jax.errors import UserError
from vit_jax.patches import Native
from vit_jax.sections import Config, seen_size

EXAMPLES = """examples:
  python -m vit_jax.cli.data configs/quickstart.py --out batch.png
  python -m vit_jax.cli.data configs/quickstart.py --out batch.png --config.data.threads=2
  python -m vit_jax.cli.data configs/quickstart.py --json --seconds 10
"""
CELL_PX = 112  # least side of an image on the sheet
LABEL_PX = 14
SHEET_VIEWS = 4  # augmented views beside each image as it is evaluated
COUNTED = 2000  # examples whose labels and sizes are read where labels are not known without reading
SHOWN_CLASSES = 20


def main() -> None:
    """Parse the command line, look, print. Raises UserError."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("config", help="config file, or FILE.py:ARGUMENT")
    parser.add_argument(
        "--out", type=output_path(".png", ".jpg", ".jpeg"), help="write a contact sheet here, as .png or .jpg"
    )
    parser.add_argument("--split", choices=("train", "eval"), default="train", help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=16, help="rows of the sheet (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="how long to measure speed (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args, rest = parser.parse_known_args()
    fields.at_least("--examples", args.examples, 1)
    cfg = config.from_command_line(args.config, rest)
    source = sources.open_split(cfg.data, train=args.split == "train")
    report = describe(source, cfg)
    if args.out:
        _save(sheet(source, cfg, args.examples), args.out)
        report["sheet"] = str(args.out)
    if args.seconds > 0:
        report["images_per_s"] = round(speed(source, cfg, args.seconds, train=args.split == "train"), 1)
    print(json.dumps(report) if args.json else _text(report, args.split))


def describe(source: Source, cfg: Config) -> dict[str, Any]:
    """Counts by class and by image size; where that needs reading, for the first COUNTED examples alone."""
    known = source.labels()
    looked = range(min(source.size, COUNTED))
    sizes: Counter[tuple[int, int]] = Counter()
    labels, broken = [], []
    for index in looked:
        try:
            picture, label = source.get(index)
            sizes[transforms.size_hw(picture)] += 1
            labels.append(label)
        except BrokenExample as e:
            broken.append(str(e))
    classes, counted = len(source.class_names), np.array(labels, np.int64) if known is None else known
    if source.multi_label:
        counts = counted.reshape(-1, classes).sum(axis=0, dtype=np.int64)
    else:
        counts = np.bincount(counted, minlength=classes)
    (heights, widths) = (
        (sorted(side) for side in zip(*sizes.elements(), strict=True)) if sizes else ([0], [0])
    )
    (common, times) = sizes.most_common(1)[0] if sizes else ((0, 0), 0)
    return {
        "examples": source.size,
        "classes": len(source.class_names),
        "class_counts": dict(zip(source.class_names, map(int, counts), strict=True)),
        "counted": len(labels) if known is None else source.size,
        "sizes": {
            "looked_at": len(looked),
            "different": len(sizes),
            "most_common_hw": list(common),
            "most_common_share": times / len(looked),
            "min_hw": [heights[0], widths[0]],
            "median_hw": [heights[len(heights) // 2], widths[len(widths) // 2]],
            "max_hw": [heights[-1], widths[-1]],
        },
        "broken": broken,
        "note": source.note(),
        "image_hw": list(cfg.model.image_hw),
        "native_tokens": size.tokens if isinstance(size := seen_size(cfg.model, cfg.data), Native) else 0,
    }


def sheet(source: Source, cfg: Config, examples: int) -> Image.Image:
    """A row per example, spread over the split: as evaluated, then SHEET_VIEWS times as trained on."""
    (h, w), size = cfg.model.image_hw, seen_size(cfg.model, cfg.data)
    zoom = max(1, -(-CELL_PX // max(h, w)))
    cell_h, cell_w = h * zoom + LABEL_PX, w * zoom + 2
    indices = np.linspace(0, source.size - 1, min(examples, source.size)).astype(int)
    out = Image.new("RGB", (cell_w * (1 + SHEET_VIEWS), cell_h * len(indices)), "white")
    draw, nearest = ImageDraw.Draw(out), Image.Resampling.NEAREST
    for row, index in enumerate(map(int, indices)):
        try:
            picture, label = source.get(index)
            views = [transforms.for_evaluation(picture, cfg.data, size)]
            for view in range(SHEET_VIEWS):
                rng = loader.augmentation_rng(cfg.seed, 0, index, view)
                views.append(transforms.for_training(picture, cfg.data, size, rng))
            text = f"{index}: {_named(source, label)}"
        except BrokenExample as e:
            views, text = [], str(e)
        for column, image_hwc in enumerate(views):
            cell = ImageOps.contain(Image.fromarray(shown(image_hwc)), (w * zoom, h * zoom), nearest)
            out.paste(cell, (column * cell_w, row * cell_h + LABEL_PX))
        draw.text((2, row * cell_h + 1), text, fill="black")
        if row == 0:
            draw.text((cell_w + 2, 1), "as trained on", fill="black")
    return out


def speed(source: Source, cfg: Config, seconds: float, *, train: bool) -> float:
    """Images per second that the loader makes on this machine, after the first batch."""
    size, seen = cfg.train.batch_size, seen_size(cfg.model, cfg.data)
    if train:
        batches = loader.TrainBatches(
            source, cfg.data, seen, size, cfg.seed, sys.maxsize // size, range(size)
        )
    else:
        batches = loader.EvalBatches(source, cfg.data, seen, size, range(size))
    stream, images, start = loader.iterate(batches, cfg.data), 0, None
    for batch in stream:
        if start is None:
            start = time.perf_counter()  # threads and workers have started
            continue
        images += len(batch.weight)
        if time.perf_counter() - start >= seconds:
            break
    return images / (time.perf_counter() - start) if start is not None and images else 0.0


def _named(source: Source, label: Label) -> str:
    """The names of an example's classes."""
    of = np.flatnonzero(label) if isinstance(label, np.ndarray) else (label,)
    return ", ".join(source.class_names[int(c)] for c in of) or "no class"


def _save(image: Image.Image, path: Path) -> None:
    try:
        image.save(path)
    except (OSError, ValueError) as e:
        raise UserError(f"cannot write --out={path}: {e}") from e


def _text(report: dict[str, Any], split: str) -> str:
    sizes, counts = report["sizes"], report["class_counts"]
    of = "" if report["counted"] == report["examples"] else f" (of the first {report['counted']:,})"
    lines = [
        f"{split}: {report['examples']:,} examples, {report['classes']} classes",
        f"sizes (height x width) of {sizes['looked_at']:,}: {sizes['different']} different, "
        f"{_size(sizes['min_hw'])} to {_size(sizes['max_hw'])}, median {_size(sizes['median_hw'])}, "
        f"most common {_size(sizes['most_common_hw'])} ({sizes['most_common_share']:.0%}); "
        f"the model sees {_size(report['image_hw'])}"
        + (f", or as many patches at most: {n} of any aspect" if (n := report["native_tokens"]) else ""),
        f"examples per class{of}: {min(counts.values(), default=0):,} to {max(counts.values(), default=0):,}",
    ]
    lines += [f"  {name}: {count:,}" for name, count in list(counts.items())[:SHOWN_CLASSES]]
    if len(counts) > SHOWN_CLASSES:
        lines.append(f"  and {len(counts) - SHOWN_CLASSES} more: --json lists them all")
    lines += [f"cannot be read: {message}" for message in report["broken"]]
    lines += [report["note"]] if report["note"] else []
    if "images_per_s" in report:
        lines.append(f"loader: {report['images_per_s']:,.0f} images/s")
    if "sheet" in report:
        lines.append(f"sheet: {report['sheet']}")
    return "\n".join(lines)


def _size(hw: list[int]) -> str:
    return f"{hw[0]}x{hw[1]}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
