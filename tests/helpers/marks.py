"""Which cases of a wide table run by default."""

from collections.abc import Iterable
from typing import Any

import pytest


def one_by_default(cases: Iterable[Any]) -> list[Any]:
    """The first case as it is; the others, which take the same way through the code, marked `long`."""
    first, *others = cases
    return [first, *(pytest.param(case, marks=pytest.mark.long) for case in others)]
