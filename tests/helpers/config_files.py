"""The config files and the recipes that each of them takes."""

from pathlib import Path

from vit_jax import config

FILES = sorted(Path("configs").glob("*.py"))
ARGS = {
    "quickstart": [""],
    "textile": [""],
    "fashion_mnist": [""],
    "flowers": [""],
    "pets": [""],
    "from_init": ["tests/golden/vit_token.npz"],
    "vit_ti16": ["", "finetune", "augreg"],
    "vit_s32": ["", "finetune", "augreg"],
    "vit_s16": ["", "finetune", "augreg", "plain", "deit3"],
    "vit_b32": ["", "finetune", "augreg"],
    "vit_b16": ["", "finetune", "augreg", "deit3", "deit3_224"],
    "vit_l16": ["", "finetune", "augreg"],
}  # of all others: both recipes
RECIPES = [(path, arg) for path in FILES for arg in ARGS.get(path.stem, ["", "finetune"])]


def parse(path, arg):
    """The config of a file, with a folder where it leaves that to the command line."""
    tree = config.load_file(f"{path}:{arg}")
    if tree.data.name == "folder":
        tree.data.dir = "photos"
    return config.parse(tree)
