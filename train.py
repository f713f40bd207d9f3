"""Train or fine-tune: flags -> config -> run."""

import os
import sys
from pathlib import Path

from vit_jax import config, fields
from vit_jax.cli.common import make_parser, run_command

COMPILATION_CACHE = Path.home() / ".cache" / "vit_jax"  # JAX_COMPILATION_CACHE_DIR names another
EXAMPLES = """examples:
  python train.py --config configs/quickstart.py --workdir runs/quickstart
  python train.py --config configs/vit_b16.py --workdir runs/b16 --config.optim.lr=3e-4
  python train.py --config configs/vit_b16.py:finetune --workdir runs/c10 --config.data.name=cifar10

the same command again continues a run that was stopped.

fields of a config:
"""


def main() -> int:
    """Parse the command line and train. Returns the exit code: 128 + n after signal n."""
    parser = make_parser(__doc__, EXAMPLES + fields.describe(config.Config))
    parser.add_argument("--config", required=True, help="FILE[:ARG], a Python config file")
    parser.add_argument(
        "--workdir", required=True, type=Path, help="folder of the run, continued if it exists"
    )
    parser.add_argument(
        "--config_change",
        choices=("refuse", "accept"),
        default="refuse",
        help="what to do if the workdir was made by another config (default: refuse)",
    )
    args, rest = parser.parse_known_args()
    cfg = config.from_command_line(args.config, rest)

    import jax  # after parsing: --help stays quick

    from vit_jax.training import loop

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(COMPILATION_CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    outcome = loop.run(cfg, args.workdir, accept_change=args.config_change == "accept")
    return 128 + outcome.signal if outcome.signal else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
