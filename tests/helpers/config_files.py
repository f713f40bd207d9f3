"""The config files and the recipes that each of them takes."""

from pathlib import Path

from vit_jax import config

FILES = sorted(Path("configs").glob("*.py"))
ARGS = {
    "quickstart": [""],
    "textile": [""],
    "from_init": ["tests/golden/vit_token.npz"],
}  # of all others: both recipes
RECIPES = [(path, arg) for path in FILES for arg in ARGS.get(path.stem, ["", "finetune"])]


def parse(path, arg):
    """The config of a file, with a folder where it leaves that to the command line."""
    tree = config.load_file(f"{path}:{arg}")
    if tree.data.name == "folder":
        tree.data.dir = "photos"
    return config.parse(tree)
