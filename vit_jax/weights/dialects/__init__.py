"""The tables of names, one file a code base, whose DIALECTS are tried in order."""

import importlib
import pkgutil

from vit_jax.weights.dialect import Dialect

DIALECTS: list[Dialect] = []


def register(*dialects: Dialect) -> None:
    """Read and write these as well as the ones in this folder."""
    DIALECTS.extend(dialects)


def names() -> list[str]:
    """What users call the dialects that can be written."""
    return sorted({d.name for d in DIALECTS})


for _module in pkgutil.iter_modules(__path__):
    register(*importlib.import_module(f"{__name__}.{_module.name}").DIALECTS)
