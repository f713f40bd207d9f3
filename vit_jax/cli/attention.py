"""Where a model looks: attention of the last layer, of every layer or rolled out, over the image."""

import json
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.cli.common import FIGURES, REF, make_parser, nonempty_path, output_path, run_command, save_sheet
from vit_jax.paths import Path

EXAMPLES = """examples:
  python -m vit_jax.cli.attention runs/b16 cat.jpg --out attention.png
  python -m vit_jax.cli.attention dinov2_folder cat.jpg --show layers --out layers.png
  python -m vit_jax.cli.attention augreg/B_16-384 cat.jpg --show rollout --json

Shown is what the class token attends to; without one, the pooling's probe or the mean of all patches.
"""
COLUMNS = 6
HEAT = 0.6  # share of the map in an overlay


def main() -> None:
    """Parse the command line, run once, print and draw."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help=REF)
    parser.add_argument("image", type=nonempty_path, help="image file")
    parser.add_argument("--out", type=output_path(*FIGURES), help="draw the maps over the image to this file")
    parser.add_argument(
        "--show",
        choices=("heads", "layers", "rollout"),
        default="heads",
        help="last layer's heads, every layer's mean over heads, or rollout (default: heads)",
    )
    parser.add_argument("--image_size", type=int, help="resize the position embedding for this size")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()

    import jax  # after parsing: --help stays quick

    import vit_jax
    from vit_jax.analysis import attention
    from vit_jax.data import transforms
    from vit_jax.data.sources import read_image
    from vit_jax.sections import seen_size
    from vit_jax.training.step import normalise

    image = read_image(args.image)
    loaded = vit_jax.load(args.ref, image_size=args.image_size)
    cfg, preprocess = loaded.spec.model, loaded.spec.preprocess
    attention.tokens(cfg)  # raises for a model without attention, before anything is computed
    seen_hwc = transforms.for_evaluation(image, preprocess, seen_size(cfg, preprocess))
    if preprocess.resize == "native":  # the model of this one grid
        loaded = vit_jax.load(args.ref, image_size=seen_hwc.shape[:2])
        cfg = loaded.spec.model

    @jax.jit
    def run(params: Any, images_bhwc: Any) -> attention.Maps:
        x_bhwc = normalise(images_bhwc, preprocess)
        return attention.capture(cfg, params, x_bhwc, every=args.show == "layers")

    maps = jax.device_get(run(loaded.params, seen_hwc[None]))
    titles, grids = _choose(args.show, maps, cfg)
    if args.out:
        save_sheet(overlays(seen_hwc, grids), ["image", *titles], args.out, columns=COLUMNS)
    facts = _facts(args.image, maps, cfg)
    print(json.dumps(facts | {"maps": grids.tolist()}) if args.json else _table(facts))


def _choose(show: str, maps: Any, cfg: Any) -> tuple[list[str], np.ndarray]:
    """Titles and grids [maps, y, x] of what is shown."""
    from vit_jax.analysis.attention import looked_at, readout, to_grid

    if show == "rollout":
        return ["rollout"], to_grid(readout(maps.rollout, cfg), cfg)
    if show == "layers":
        mean_lnm = maps.layers[:, 0].mean(axis=1)
        return [f"layer {i}" for i in range(cfg.depth)], to_grid(readout(mean_lnm, cfg), cfg)
    heads_hm = looked_at(maps, cfg)
    titles = ["mean", *(f"head {i}" for i in range(cfg.heads))]
    return titles, to_grid(np.concatenate([heads_hm.mean(axis=0)[None], heads_hm]), cfg)


def _facts(path: Path, maps: Any, cfg: Any) -> dict[str, Any]:
    from vit_jax.analysis.attention import looked_at, shares

    return {
        "path": str(path),
        "grid": list(cfg.grid_hw),
        "attention_to": shares(looked_at(maps, cfg).mean(axis=0), cfg),
        "distance_px": [float(d) for d in maps.distance_lh.mean(axis=1)],
    }


def _table(facts: dict[str, Any]) -> str:
    kinds = ", ".join(f"{name} {share:.1%}" for name, share in facts["attention_to"].items())
    lines = [f"{facts['path']}: a grid of {facts['grid'][0]} x {facts['grid'][1]} patches"]
    lines += [f"the last layer's attention goes to {kinds}", "mean attention distance per layer, in pixels:"]
    return "\n".join([*lines, *(f"  {i:3} {d:8.1f}" for i, d in enumerate(facts["distance_px"]))])


def overlays(image_hwc: np.ndarray, grids: np.ndarray) -> list[Image.Image]:
    """The uint8 image, then each map [y, x] as a heat over it, from its least value to its largest."""
    from matplotlib import colormaps  # slow to import, and only needed here

    h, w, c = image_hwc.shape
    base_hwc = np.broadcast_to(image_hwc[..., : 3 if c > 2 else 1], (h, w, 3))
    panels = [base_hwc]
    for grid in grids:
        scaled = (grid - grid.min()) / max(float(np.ptp(grid)), 1e-12)
        large = Image.fromarray(scaled.astype(np.float32)).resize((w, h), Image.Resampling.BILINEAR)
        heat_hwc = 255 * colormaps["inferno"](np.asarray(large))[..., :3]
        panels.append((HEAT * heat_hwc + (1 - HEAT) * base_hwc).round().astype(np.uint8))
    return [Image.fromarray(np.ascontiguousarray(panel)) for panel in panels]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
