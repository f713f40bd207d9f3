"""Packages that the default install leaves out."""

import importlib
from typing import Any

from vit_jax.errors import UserError


def need(module: str, extra: str, what: str) -> Any:
    """The module that `what` cannot do without. Raises UserError if it is not there, naming the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        raise UserError(f"{what} needs {module.partition('.')[0]}: pip install 'vit_jax[{extra}]'") from e
