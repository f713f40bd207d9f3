"""What became of every array of a file."""

import collections
import dataclasses
from typing import NamedTuple


class Note(NamedTuple):
    """One array and what was done to it, or why."""

    name: str
    what: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Names are ours, but for those of ignored arrays. What is resized or converted is loaded, too."""

    source: str
    dialect: str
    parameters: int
    loaded: tuple[str, ...] = ()
    resized: tuple[Note, ...] = ()  # from which grid to which, by which method
    reset: tuple[Note, ...] = ()  # fresh values, and why
    converted: tuple[Note, ...] = ()  # a change of layout or dtype that keeps the values
    ignored: tuple[Note, ...] = ()  # explained names that the model has no use for

    def __str__(self) -> str:
        arrays, millions = len(self.loaded), self.parameters / 1e6
        lines = [
            f"loaded {arrays} arrays, {millions:.4g} M parameters, {self.dialect} layout, from {self.source}"
        ]
        for verb in ("resized", "reset", "converted", "ignored"):
            names = collections.defaultdict(list)
            for note in getattr(self, verb):
                names[note.what].append(note.name)
            lines += [f"  {verb} {_some(group)}: {what}" for what, group in names.items()]
        return "\n".join(lines)


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} arrays ({names[0]} ... {names[-1]})"
