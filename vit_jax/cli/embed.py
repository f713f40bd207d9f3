"""Features of images, of any layer and pooled as you like, to an .npz or .parquet file."""

import io
import json
import zipfile
from typing import Any, NamedTuple

import numpy as np

from vit_jax import config, fields, paths
from vit_jax.cli.common import (
    IMAGES,
    REF,
    data_of_files,
    image_names,
    make_parser,
    output_path,
    progress,
    run_command,
)
from vit_jax.errors import UserError
from vit_jax.extras import need
from vit_jax.paths import Path

EXAMPLES = """examples:
  python -m vit_jax.cli.embed dinov2_folder photos 'more/*.jpg' --out features.npz
  python -m vit_jax.cli.embed augreg/B_16 gs://bucket/photos --out features.parquet --data.on_error=skip
  find . -name '*.jpg' | python -m vit_jax.cli.embed runs/b16 - --layer -2 --pool none --out tokens.npz

The file has `paths` and float32 `features`, a row per image in the order given, and `about`, a JSON object
with the model, image size, block and pooling. Features are those of a block under the model's final norm;
after the last block with --pool none, what timm calls forward_features and transformers last_hidden_state.
They are in memory until all are made. Images are seen as the model's evaluation sees them;
--data.field=value says otherwise, as for evaluate.
"""


def main() -> None:
    """Parse the command line, compute, write, print."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help=REF)
    parser.add_argument("images", nargs="+", help=IMAGES)
    parser.add_argument("--out", required=True, type=output_path(".npz", ".parquet"), help="file to write")
    parser.add_argument("--layer", type=int, default=-1, help="block, from 0, or back from -1 (default: -1)")
    parser.add_argument(
        "--pool",
        default="model",
        help="model (what its head sees), token (class token), gap (mean of patches) or none (all tokens) "
        "(default: model)",
    )
    parser.add_argument("--image_size", type=int, help="resize the position embedding for this size")
    parser.add_argument("--batch_size", type=int, default=64, help="images per batch (default: 64)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args, rest = parser.parse_known_args()
    fields.at_least("--batch_size", args.batch_size, 1)
    if args.out.suffix.lower() == ".parquet":
        need("pyarrow", "parquet", f"--out={args.out}")
    names = image_names(args.images)

    import vit_jax  # after parsing: --help stays quick
    from vit_jax.analysis import features
    from vit_jax.data.sources import Files

    loaded = vit_jax.load(args.ref, image_size=args.image_size)
    cfg = loaded.spec.model
    column = features.pick(cfg, layer=args.layer, pool=args.pool)
    data = data_of_files(loaded, rest)
    size = min(args.batch_size, len(names))
    job = features.Job(cfg, config.preprocess_of(data), data, (column,), False, size)
    split = job.run(loaded.params, Files(names), progress("embed: images", len(names)))
    kept, made = [names[i] for i in split.label], split.columns[column]
    about = {"ref": args.ref, "image_size": cfg.image_size, "layer": column.layer, "pool": column.pooling}
    write(args.out, kept, made, about)
    facts = {"file": str(args.out), "shape": list(made.shape), "skipped": len(names) - len(kept), **about}
    print(json.dumps(facts) if args.json else _text(facts))


def write(path: Path, names: list[str], features: np.ndarray, about: dict[str, Any]) -> None:
    """A row per image, whole or not at all. Raises UserError if it cannot be written."""
    about_json = json.dumps(about)
    with paths.replacing(path) as file:
        if path.suffix.lower() == ".npz":
            np.savez(file, paths=np.array(names), features=features, about=np.array(about_json))
            return
        import pyarrow as pa  # slow to import, and only needed here
        import pyarrow.parquet as pq

        column = pa.array(features.reshape(-1))
        for size in reversed(features.shape[1:]):
            column = pa.FixedSizeListArray.from_arrays(column, size)
        table = pa.table({"paths": names, "features": column}).replace_schema_metadata({"about": about_json})
        pq.write_table(table, file)


class Embedded(NamedTuple):
    """What the file of features holds: float32 `features` [n, d] or [n, tokens, d], a row per path."""

    paths: list[str]
    features: np.ndarray
    about: dict[str, Any]


def read(path: Path) -> Embedded:
    """What `write` wrote. Raises UserError for a file that is something else."""
    try:
        data = paths.read(str(path))
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e
    try:
        return (_read_parquet if path.suffix.lower() == ".parquet" else _read_npz)(io.BytesIO(data))
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f"{path} has no features that embed wrote: {e}") from e


def _read_npz(file: io.BytesIO) -> Embedded:
    with np.load(file, allow_pickle=False) as found:
        return Embedded(found["paths"].tolist(), found["features"], json.loads(str(found["about"])))


def _read_parquet(file: io.BytesIO) -> Embedded:
    pq = need("pyarrow.parquet", "parquet", "a .parquet file of features")
    table = pq.read_table(file)
    about = json.loads((table.schema.metadata or {})[b"about"])
    features = np.array(table["features"].to_pylist(), np.float32)
    return Embedded(table["paths"].to_pylist(), features, about)


def _text(facts: dict[str, Any]) -> str:
    shape = " x ".join(f"{n:,}" for n in facts["shape"])
    skipped = f", {facts['skipped']:,} skipped" if facts["skipped"] else ""
    return f"wrote {facts['file']}: {shape} float32, block {facts['layer']}, pool {facts['pool']}{skipped}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
