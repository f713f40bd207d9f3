"""Class names and confidences of images, from a trained run."""

import json
import math
from pathlib import Path

from PIL import Image

from vit_jax.cli.common import make_parser, run_command
from vit_jax.errors import UserError

EXAMPLES = """examples:
  python -m vit_jax.cli.predict runs/quickstart digit.png
  python -m vit_jax.cli.predict runs/b16 photos/*.jpg --top 3 --out labelled.png
  python -m vit_jax.cli.predict runs/b16 cat.jpg --json
"""
PANEL_PX = 224  # height of a picture in --out


def main() -> None:
    """Parse the command line, predict, print."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help="run directory, or one step of it")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=5, help="classes an image (default: 5)")
    parser.add_argument("--out", type=Path, help="draw the images with their labels to this file")
    parser.add_argument("--json", action="store_true", help="one JSON object an image")
    args = parser.parse_args()
    if args.top < 1:
        raise UserError(f"--top={args.top} must be at least 1")

    import vit_jax  # after parsing: --help stays quick
    from vit_jax.data.sources import read_image

    images = [read_image(Path(path)) for path in args.images]
    results = vit_jax.load(args.ref).classify(images, top=args.top)
    for path, predictions in zip(args.images, results, strict=True):
        if args.json:
            rows = [{"class": p.name, "index": p.index, "confidence": p.confidence} for p in predictions]
            print(json.dumps({"path": path, "predictions": rows}))
        else:
            print(path)
            for p in predictions:
                print(f"  {p.confidence:7.2%}  {p.name}")
    if args.out:
        draw(images, [f"{p[0].name} {p[0].confidence:.1%}" for p in results], args.out)


def draw(images: list[Image.Image], titles: list[str], path: Path) -> None:
    """A sheet of images with a title each. Raises UserError if the file cannot be written."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    columns = min(4, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image, title in zip(figure.axes, images, titles, strict=False):
        axes.imshow(image, cmap="gray", interpolation="nearest" if image.width < PANEL_PX else None)
        axes.set_title(title, fontsize=11)
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as e:
        raise UserError(f"cannot write --out {path}: {e}") from e


if __name__ == "__main__":
    raise SystemExit(run_command(main))
