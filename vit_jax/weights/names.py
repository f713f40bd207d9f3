"""One table of names a dialect, read from left to right when saving and from right to left when loading."""

import re
from collections.abc import Iterable
from typing import NamedTuple

# What a {placeholder} of a table stands for.
PLACEHOLDERS = {
    "i": r"0|[1-9]\d*",
    "j": r"0|[1-9]\d*",
    "n": r"[1-3]",
    "leaf": r"kernel|bias|scale",
    "part": r"query|key|value|out",
}


class Row(NamedTuple):
    """One family of names: ours, theirs, and older ones that are read but never written."""

    ours: str
    theirs: str
    also: tuple[str, ...] = ()


class Names:
    """A total table: a name that no row matches has no counterpart."""

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = tuple(rows)
        self._to_theirs = [(pattern(row.ours), row.theirs) for row in rows]
        self._to_ours = [(pattern(t), row.ours) for row in rows for t in (row.theirs, *row.also)]

    def ours(self, theirs: str) -> str | None:
        """Our name of one of theirs, or None."""
        return _translate(self._to_ours, theirs)

    def theirs(self, ours: str) -> str | None:
        """Their name of one of ours, or None."""
        return _translate(self._to_theirs, ours)


def _translate(table: list[tuple[re.Pattern[str], str]], name: str) -> str | None:
    for regex, other in table:
        match = regex.fullmatch(name)
        if match:
            return fill(other, match)
    return None


def fill(template: str, match: re.Match[str]) -> str:
    """`template` with its placeholders as they were found."""
    return template.format(**match.groupdict())


def pattern(template: str) -> re.Pattern[str]:
    """Matches the names that a template with placeholders stands for."""
    parts = re.split(r"\{(\w+)\}", template)
    literals, holes = parts[::2], parts[1::2]
    groups = [f"(?P<{hole}>{PLACEHOLDERS[hole]})" for hole in holes]
    return re.compile("".join(re.escape(a) + b for a, b in zip(literals, [*groups, ""], strict=True)))
