"""Train or fine-tune, from a checkout: `vit_jax train` does the same where the package is installed."""

import sys

from vit_jax.cli.common import run_command
from vit_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(run_command(main))
