"""How torch code lays out the same arrays: one row a parameter of ours, with the way there and back.

A row names the array of theirs, which of its equal parts along the first axis is meant (a fused qkv has
three), and the layout of that part. Layouts are views: no number is computed, so both ways keep every bit.
Dims: i inputs, o outputs, h heads, k features a head, y x kernel.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from vit_jax.weights.names import fill, pattern

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """`read(theirs, heads)` gives our array, `write(ours)` theirs."""

    read: Callable[[np.ndarray, int], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda a, h: a, lambda a: a)
DENSE = Layout(lambda a_oi, h: a_oi.T, lambda a_io: a_io.T)
CONV = Layout(lambda a_oiyx, h: a_oiyx.transpose(2, 3, 1, 0), lambda a_yxio: a_yxio.transpose(3, 2, 0, 1))
HEADS_IN = Layout(
    lambda a_oi, h: a_oi.T.reshape(a_oi.shape[1], h, -1), lambda a_ihk: a_ihk.reshape(len(a_ihk), -1).T
)
HEADS_BIAS = Layout(lambda a_o, h: a_o.reshape(h, -1), lambda a_hk: a_hk.reshape(-1))
HEADS_OUT = Layout(
    lambda a_oi, h: a_oi.T.reshape(h, -1, len(a_oi)), lambda a_hko: a_hko.reshape(-1, a_hko.shape[-1]).T
)
ROWS = Layout(lambda a_nd, h: a_nd[None], lambda a_1nd: a_1nd[0])


class Part(NamedTuple):
    """One parameter of ours: which array of theirs it is, which of its parts, in which layout."""

    ours: str
    theirs: str
    layout: Layout = SAME
    nth: int = 0
    of: int = 1
    also: tuple[str, ...] = ()  # older names, read but never written

    def read(self, array: np.ndarray, heads: int) -> np.ndarray:
        """Our array, a view of theirs. Raises ValueError or IndexError where the shape does not allow it."""
        if len(array) % self.of:
            raise ValueError(f"{len(array)} rows are not {self.of} equal parts")
        size = len(array) // self.of
        part = array[self.nth * size : (self.nth + 1) * size] if self.of > 1 else array
        return self.layout.read(part, heads)


class Source(NamedTuple):
    """Where a parameter lies in a file."""

    array: str
    part: Part


class Table:
    """Rows with the same placeholders as `names.Names` has, many of ours to one of theirs."""

    def __init__(self, rows: Iterable[Part]) -> None:
        rows = tuple(rows)
        self._by_ours = [(pattern(row.ours), row) for row in rows]
        self._by_theirs = [(pattern(t), row) for row in rows for t in (row.theirs, *row.also)]

    def ours(self, theirs: str) -> list[tuple[str, Part]]:
        """Our names that lie in one array of theirs; none for an array that no row knows."""
        found = [(p.fullmatch(theirs), row) for p, row in self._by_theirs]
        return [(fill(row.ours, match), row) for match, row in found if match]

    def theirs(self, ours: str) -> tuple[str, Part] | None:
        """The array of theirs that holds one of ours."""
        for p, row in self._by_ours:
            match = p.fullmatch(ours)
            if match:
                return fill(row.theirs, match), row
        return None

    def pack(self, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Their arrays, C-contiguous float32, of ours, every one of which has a row."""
        gathered: dict[str, dict[int, np.ndarray]] = {}
        for name, array in params.items():
            found = self.theirs(name)
            if found is None:
                raise KeyError(name)
            theirs, row = found
            gathered.setdefault(theirs, {})[row.nth] = row.layout.write(array)
        joined = {n: [p[i] for i in sorted(p)] for n, p in gathered.items()}
        return {
            n: np.ascontiguousarray(p[0] if len(p) == 1 else np.concatenate(p)) for n, p in joined.items()
        }


def shape_of(part: Part, shape: Shape, heads: int) -> Shape:
    """The shape that `part.read` gives for an array of `shape`, or `shape` where it cannot be read."""
    empty = np.broadcast_to(np.float32(0), shape)  # of any size, without memory
    try:
        return part.read(empty, heads).shape
    except (ValueError, IndexError, TypeError):
        return shape


def norm(ours: str, theirs: str) -> tuple[Part, ...]:
    """A LayerNorm."""
    return Part(f"{ours}/scale", f"{theirs}.weight"), Part(f"{ours}/bias", f"{theirs}.bias")


def dense(ours: str, theirs: str, index: int = 0, count: int = 1) -> tuple[Part, ...]:
    """A linear layer, or one of those that lie in one array."""
    kernel = Part(f"{ours}/kernel", f"{theirs}.weight", DENSE, index, count)
    return kernel, Part(f"{ours}/bias", f"{theirs}.bias", SAME, index, count)


def conv(ours: str, theirs: str) -> tuple[Part, ...]:
    """A convolution."""
    return Part(f"{ours}/kernel", f"{theirs}.weight", CONV), Part(f"{ours}/bias", f"{theirs}.bias")


def project(ours: str, theirs: str, index: int = 0, count: int = 1, dot: str = ".") -> tuple[Part, ...]:
    """A projection to heads; `dot` is "_" in torch's own attention module."""
    kernel = Part(f"{ours}/kernel", f"{theirs}{dot}weight", HEADS_IN, index, count)
    return kernel, Part(f"{ours}/bias", f"{theirs}{dot}bias", HEADS_BIAS, index, count)


def out(ours: str, theirs: str) -> tuple[Part, ...]:
    """The projection of all heads to the width."""
    return Part(f"{ours}/kernel", f"{theirs}.weight", HEADS_OUT), Part(f"{ours}/bias", f"{theirs}.bias")


def fused(ours: str, theirs: str, dot: str = ".") -> tuple[Part, ...]:
    """Query, key and value in one array, in this order."""
    parts = [project(f"{ours}/{name}", theirs, i, 3, dot) for i, name in enumerate(("query", "key", "value"))]
    return tuple(row for rows in parts for row in rows)
