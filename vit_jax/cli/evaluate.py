"""Accuracy and loss of a trained run on a data set, each example counted exactly once."""

import dataclasses
import json

from vit_jax import config
from vit_jax.cli.common import make_parser, run_command
from vit_jax.errors import UserError

EXAMPLES = """examples:
  python -m vit_jax.cli.evaluate runs/quickstart
  python -m vit_jax.cli.evaluate runs/b16 --data.name=imagenet_v2 --data.eval_split=test --json

data fields that are not given are those that the run was trained with.
"""


def main() -> None:
    """Parse the command line, evaluate, print."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help="run directory, or one step of it")
    parser.add_argument("--batch_size", type=int, default=128, help="examples a batch (default: 128)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args, rest = parser.parse_known_args()
    if args.batch_size < 1:
        raise UserError(f"--batch_size={args.batch_size} must be at least 1")

    import jax  # after parsing: --help stays quick

    import vit_jax
    from vit_jax.data import sources
    from vit_jax.training import mesh as meshes
    from vit_jax.training.evaluate import Evaluator, format_metrics

    loaded = vit_jax.load(args.ref)
    data = config.override_data(loaded.data, rest)
    spec = dataclasses.replace(loaded.spec, preprocess=config.preprocess_of(data))
    source = sources.open_split(data, train=False)
    mesh = meshes.make("any", 1)
    params = jax.device_put(loaded.params, meshes.shardings(loaded.params, mesh))
    with jax.set_mesh(mesh):
        metrics = Evaluator(loaded.model, spec, mesh, args.batch_size)(params, source, data)
    print(json.dumps(metrics) if args.json else format_metrics(metrics))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
