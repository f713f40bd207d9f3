"""Write a model as StableHLO with a free batch size, that jax.export runs anywhere without this package."""

import json
from typing import Any

from vit_jax import paths
from vit_jax.cli.common import make_parser, output_path, run_command
from vit_jax.errors import UserError

EXAMPLES = """examples:
  python -m vit_jax.cli.export runs/b16 b16.stablehlo
  python -m vit_jax.cli.export augreg/B_16-384 b16.stablehlo --platforms cpu,cuda

The file takes uint8 images [batch, height, width, channels], resized and cropped as `info` says, and gives
float32 logits; what makes confidences of them, softmax or sigmoid, is told by --json. jax alone runs it:
  exported = jax.export.deserialize(open("b16.stablehlo", "rb").read())
  logits = exported.call(images)
"""
BATCHES = (1, 3)  # sizes at which the file is compared with the model
ATOL = 1e-5  # of logits of order one: the same operations, compiled as another program


def main() -> None:
    """Parse the command line, export, reload, compare, print."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help="run directory, one step of it, file, folder, address or published name")
    parser.add_argument("out", type=output_path(), help="file to write")
    parser.add_argument("--platforms", default="", help="cpu, cuda, rocm or tpu, with commas (default: here)")
    parser.add_argument("--image_size", type=int, help="resize the position embedding for this size")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()

    import jax  # after parsing: --help stays quick
    import numpy as np
    from jax import export

    import vit_jax
    from vit_jax.training.step import normalise

    loaded = vit_jax.load(args.ref, image_size=args.image_size)
    spec = loaded.spec
    shape = (*spec.model.image_hw, spec.preprocess.channels)

    def logits(image_bhwc: Any) -> Any:
        return loaded.model.apply({"params": loaded.params}, normalise(image_bhwc, spec.preprocess))

    (b,) = export.symbolic_shape("b")
    platforms = [p.strip() for p in args.platforms.split(",") if p.strip()] or None
    try:
        made = export.export(jax.jit(logits), platforms=platforms)(
            jax.ShapeDtypeStruct((b, *shape), np.uint8)
        )
    except ValueError as error:
        raise UserError(f"--platforms={args.platforms}: {str(error).splitlines()[0]}") from error
    paths.write(args.out, bytes(made.serialize()))
    written = args.out.read_bytes()
    again = export.deserialize(bytearray(written))
    gap = max(_gap(again, jax.jit(logits), (size, *shape)) for size in BATCHES) if _runs_here(again) else None
    if gap is not None and not gap <= ATOL:
        args.out.unlink()
        raise UserError(f"the exported file differs by {gap:.1e} from the model: it was removed; report this")
    facts = {
        "loss": spec.loss,
        "file": str(args.out),
        "bytes": len(written),
        "largest_difference": gap,
    }
    checked = f"differs by at most {gap:.1e}" if gap is not None else "is not for this machine: not compared"
    print(json.dumps(facts) if args.json else f"wrote {args.out} ({facts['bytes']:,} bytes); it {checked}")


def _runs_here(exported: Any) -> bool:
    import jax

    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    return here in exported.platforms


def _gap(exported: Any, logits: Any, shape: tuple[int, ...]) -> float:
    import numpy as np

    image_bhwc = np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)
    return float(np.abs(np.asarray(exported.call(image_bhwc)) - np.asarray(logits(image_bhwc))).max())


if __name__ == "__main__":
    raise SystemExit(run_command(main))
