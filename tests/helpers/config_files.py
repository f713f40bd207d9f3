"""The config files and the recipes that each of them takes."""

from pathlib import Path

FILES = sorted(Path("configs").glob("*.py"))
RECIPES = [(p, arg) for p in FILES for arg in (["", "finetune"] if p.stem != "quickstart" else [""])]
