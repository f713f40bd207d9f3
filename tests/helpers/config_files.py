"""The config files and the recipes that each of them takes."""

from pathlib import Path

FILES = sorted(p for p in Path("configs").glob("*.py") if p.stem != "recipes")
RECIPES = [(p, arg) for p in FILES for arg in (["", "finetune"] if p.stem != "quickstart" else [""])]
