"""What accuracy costs: one checkpoint at several patch and image sizes, top-1 beside time, in one table."""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from vit_jax import fields
from vit_jax.cli import evaluate
from vit_jax.cli.common import FIGURES, REF, make_parser, output_path, run_command, save_figure
from vit_jax.errors import UserError
from vit_jax.paths import Path

EXAMPLES = """examples:
  python -m vit_jax.cli.frontier runs/flexi --patch_sizes 2,4,8
  python -m vit_jax.cli.frontier flexivit_b.npz --patch_sizes 8,12,16,24,48 --image_sizes 240 \\
      --data.name=imagenet2012 --out frontier.png --json

The patch embedding is resized by the pseudo-inverse (FlexiViT, arXiv:2212.08013), positions as the model does
it; a * marks what no other size beats in accuracy and time. Time is that of the model alone, the median of
turns that the sizes take one after another, on the fastest device here.
"""
TURNS = 9  # an odd number, for a median
Timed = Callable[[], float]


class Point(NamedTuple):
    """One size: pixels of a patch and of an image (height, width), its top-1 and milliseconds per image."""

    patch_size: int
    image_size: tuple[int, int]
    tokens: int
    top1: float
    ms: float
    best: bool = False  # on the frontier


def main() -> None:
    """Parse the command line, evaluate each size, time them in turns, print."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help=REF)
    parser.add_argument("--patch_sizes", type=_sizes, help="pixels, with commas (default: the model's own)")
    parser.add_argument("--image_sizes", type=_sizes, help="pixels, with commas (default: the model's own)")
    parser.add_argument("--batch_size", type=int, default=128, help="examples per batch (default: 128)")
    parser.add_argument("--timed_batch", type=int, default=8, help="images that are timed (default: 8)")
    parser.add_argument("--out", type=output_path(*FIGURES), help="draw the points to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args, rest = parser.parse_known_args()
    for name in ("batch_size", "timed_batch"):
        fields.at_least(f"--{name}", getattr(args, name), 1)
    points = _measure(args, rest)
    if args.out:
        _draw(points, args.out)
    print(json.dumps({"points": [p._asdict() for p in points]}) if args.json else _table(points))


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UserError(f"sizes {text!r} are not whole numbers of pixels with commas, such as 8,16,32")
    return sizes


def _measure(args: argparse.Namespace, rest: list[str]) -> list[Point]:
    from vit_jax.analysis import predictions  # after parsing: --help stays quick
    from vit_jax.analysis.frontier import frontier

    found: list[tuple[Any, float, Timed]] = []
    for patch_size, image_size in itertools.product(args.patch_sizes or (None,), args.image_sizes or (None,)):
        size = {"patch_size": patch_size, "image_size": image_size}
        opened = evaluate.opened(args.ref, rest, batch_size=args.batch_size, **size)
        if opened.source.multi_label:
            raise UserError(
                "the data gives several labels per image, and a frontier is of top-1: use evaluate"
            )
        if opened.loaded.spec.preprocess.max_tokens:
            raise UserError(
                f"{args.ref} sees data.max_tokens patches at any image size: its sizes have no frontier"
            )
        rows, names = evaluate.collected(opened, keep_logits=False)
        top1 = predictions.metrics(rows, classes=len(names))["top1"]
        found.append((opened.loaded.spec.model, top1, _timed(opened.loaded, args.timed_batch)))
    turns = [[timed() for _, _, timed in found] for _ in range(TURNS)]
    ms = [1e3 * statistics.median(spent) / args.timed_batch for spent in zip(*turns, strict=True)]
    best = frontier([top1 for _, top1, _ in found], ms)
    return [
        Point(m.patch_size, m.image_hw, m.prefix + m.grid_hw[0] * m.grid_hw[1], top1, spent, on)
        for (m, top1, _), spent, on in zip(found, ms, best, strict=True)
    ]


def _timed(loaded: Any, batch: int) -> Timed:
    """A function that gives the seconds of one forward pass, compiled here."""
    import jax
    import numpy as np

    h, w = loaded.spec.model.image_hw
    image_bhwc = np.zeros((batch, h, w, loaded.spec.preprocess.channels), np.float32)
    program = jax.jit(loaded.model.apply).lower({"params": loaded.params}, image_bhwc).compile()

    def timed() -> float:
        start = time.perf_counter()
        jax.block_until_ready(program({"params": loaded.params}, image_bhwc))
        return time.perf_counter() - start

    return timed


def _table(points: list[Point]) -> str:
    lines = ["  patch      image  tokens   top-1  ms/image"]
    for p in points:
        image = f"{p.image_size[0]}x{p.image_size[1]}"
        mark = "*" if p.best else " "
        lines.append(f"{mark} {p.patch_size:5} {image:>10} {p.tokens:7} {p.top1:7.2%} {p.ms:9.3f}")
    return "\n".join(lines)


def _draw(points: list[Point], path: Path) -> None:
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    best = sorted((p for p in points if p.best), key=lambda p: p.ms)
    axes.plot([p.ms for p in best], [100 * p.top1 for p in best], "-", color="C0", zorder=1)
    axes.scatter(
        [p.ms for p in points], [100 * p.top1 for p in points], c=["C0" if p.best else "0.6" for p in points]
    )
    for p in points:
        label = f"{p.patch_size} px of {p.image_size[0]}x{p.image_size[1]}"
        axes.annotate(label, (p.ms, 100 * p.top1), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="milliseconds per image", ylabel="top-1 (%)", xscale="log")
    save_figure(figure, path, "--out")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
