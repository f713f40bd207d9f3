"""Packages that the default install leaves out."""

import importlib
from typing import Any

from vit_jax.errors import UserError


def need(module: str, extra: str, what: str) -> Any:
    """The module that `what` cannot do without.

    Raises UserError, naming the extra, if its package is not installed.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as e:
        raise UserError(f"{what} needs {package}: pip install 'vit_jax[{extra}]'") from e
    return importlib.import_module(module)
