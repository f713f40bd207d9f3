"""Write a model with a free batch size, as StableHLO that jax runs without this package, or as ONNX.

An out file that ends in .onnx is ONNX, written by jax2onnx (extra onnx).
"""

import dataclasses
import importlib.util
import json
from typing import Any

from vit_jax import paths
from vit_jax.cli.common import REF, make_parser, output_path, run_command
from vit_jax.errors import UserError, first_line

EXAMPLES = """examples:
  python -m vit_jax.cli.export runs/b16 b16.stablehlo
  python -m vit_jax.cli.export augreg/B_16-384 b16.stablehlo --platforms cpu,cuda
  python -m vit_jax.cli.export runs/b16 b16.onnx

The file takes uint8 images [batch, height, width, channels], resized and cropped as `info` says, and gives
float32 logits; the field `loss` of --json says whether softmax or sigmoid turns them into confidences. jax
runs StableHLO:
  exported = jax.export.deserialize(open("b16.stablehlo", "rb").read())
  logits = exported.call(images)
"""
BATCHES = (1, 3)  # sizes at which the file is compared with the model
ATOL = 1e-5  # of logits of order one: the same operations, compiled as another program


def main() -> None:
    """Parse the command line, export, reload, compare, print."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help=REF)
    parser.add_argument("out", type=output_path(), help="file to write")
    parser.add_argument("--platforms", default="", help="cpu, cuda, rocm or tpu, with commas (default: here)")
    parser.add_argument("--image_size", type=int, help="resize the position embedding for this size")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    onnx = args.out.suffix.lower() == ".onnx"
    if onnx and args.platforms:
        raise UserError(
            f"--platforms={args.platforms} is for StableHLO: an .onnx file runs where its runtime does"
        )
    if onnx and not all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime"))):
        raise UserError(
            f"to write {args.out} install jax2onnx and onnxruntime (the extra onnx); StableHLO, which any "
            "other name means, needs neither"
        )

    import jax  # after parsing: --help stays quick

    import vit_jax
    from vit_jax.cli import onnx_files
    from vit_jax.models import build
    from vit_jax.training.step import normalise

    loaded = vit_jax.load(args.ref, image_size=args.image_size)
    loaded.need_head()
    spec = loaded.spec
    if spec.preprocess.resize == "native":
        raise UserError(
            f"{args.ref} sees images at their own aspect, and an exported file takes images of one size: "
            "train with another data.resize"
        )
    shape = (*spec.model.image_hw, spec.preprocess.channels)
    # Runtimes of ONNX on CPUs have no products in bfloat16.
    model = build.build(dataclasses.replace(spec.model, dtype="float32")) if onnx else loaded.model

    def logits(image_bhwc: Any) -> Any:
        return model.apply({"params": loaded.params}, normalise(image_bhwc, spec.preprocess))

    made = onnx_files.write(args.ref, logits, shape) if onnx else _stablehlo(logits, shape, args.platforms)
    paths.write(args.out, made)
    written = args.out.read_bytes()
    again = onnx_files.read(written) if onnx else _reload_stablehlo(written)
    gap = again and max(_gap(again, jax.jit(logits), (size, *shape)) for size in BATCHES)
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


def _stablehlo(logits: Any, shape: tuple[int, ...], platforms: str) -> bytes:
    import jax
    import numpy as np
    from jax import export

    (b,) = export.symbolic_shape("b")
    names = [p.strip() for p in platforms.split(",") if p.strip()] or None
    try:
        made = export.export(jax.jit(logits), platforms=names)(jax.ShapeDtypeStruct((b, *shape), np.uint8))
    except ValueError as error:
        raise UserError(f"--platforms={platforms}: {first_line(error)}") from error
    return bytes(made.serialize())


def _reload_stablehlo(data: bytes) -> Any:
    """The function of images in the file; None if it does not run here."""
    from jax import export

    again = export.deserialize(bytearray(data))
    return again.call if export.default_export_platform() in again.platforms else None


def _gap(again: Any, logits: Any, shape: tuple[int, ...]) -> float:
    import numpy as np

    image_bhwc = np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)
    return float(np.abs(np.asarray(again(image_bhwc)) - np.asarray(logits(image_bhwc))).max())


if __name__ == "__main__":
    raise SystemExit(run_command(main))
