"""The installed command `vit_jax`: each module of this folder is a command of its own."""

import importlib
import importlib.metadata
import sys

from vit_jax.cli.common import run_command
from vit_jax.errors import UserError

COMMANDS = {
    "train": "train or fine-tune, plan, sweep",
    "predict": "class names and confidences of images",
    "evaluate": "accuracy, calibration, confusion and comparison on a data set",
    "frontier": "accuracy beside time of one checkpoint at several patch and image sizes",
    "attention": "pictures of what a model looks at",
    "embed": "features of images, to a file",
    "demo": "a web page: drop images, see classes, attention and nearest images",
    "probe": "k-NN and linear probes on frozen features",
    "info": "what a model is, on one screen",
    "diff": "where two runs part, and what differed before",
    "data": "what training will see, and how fast it comes",
    "convert": "write weights in the layout of another code base",
    "export": "write a model for other runtimes",
}
USAGE = "usage: vit_jax COMMAND ...\n\ncommands, each with its own --help:\n"


def main() -> int:
    """Run the command that is named first. Returns its exit code; raises UserError for an unknown one."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE + "\n".join(f"  {command:10} {what}" for command, what in COMMANDS.items()))
        return 0
    if name == "--version":
        print(importlib.metadata.version("vit_jax"))
        return 0
    if name not in COMMANDS:
        raise UserError(f"vit_jax has no command {name!r}: use {', '.join(COMMANDS)}")
    sys.argv = [f"{sys.argv[0]} {name}", *rest]
    return importlib.import_module(f"vit_jax.cli.{name}").main() or 0


def command() -> None:
    """What the installed script calls."""
    sys.exit(run_command(main))
