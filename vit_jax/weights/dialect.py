"""What a dialect is: a row for each parameter, and what the files of a code base leave unsaid.

A row names the array of theirs that holds a parameter of ours, which of its equal parts along the first axis
is meant (a fused qkv has three), and the layout of that part. Layouts are views: no number is computed, so
both ways keep every bit. Dims: i inputs, o outputs, h heads, k features per head, y x kernel.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from vit_jax.sections import Model, Preprocess

MOST_BLOCKS = 1000  # far beyond any model: what a file claims is believed only up to here
Flat = dict[str, np.ndarray]
Shape = tuple[int, ...]
Shapes = dict[str, Shape]

# What a {placeholder} of a name stands for.
PLACEHOLDERS = {
    "i": r"0|[1-9]\d*",
    "j": r"0|[1-9]\d*",
    "i0": r"0|[1-9]\d*",
    "j0": r"0|[1-9]\d*",
    "n": r"[1-3]",
    "leaf": r"kernel|bias|scale",
    "part": r"query|key|value|out",
}
FROM_ZERO = {"i": "i0", "j": "j0"}  # the same, counted from one and from zero


class Layout(NamedTuple):
    """`read(theirs, heads)` gives our array, `write(ours)` theirs."""

    read: Callable[[np.ndarray, int], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]
    per_head: bool = False  # reading needs the number of heads


SAME = Layout(lambda a, h: a, lambda a: a)
DENSE = Layout(lambda a_oi, h: a_oi.T, lambda a_io: a_io.T)
CONV = Layout(lambda a_oiyx, h: a_oiyx.transpose(2, 3, 1, 0), lambda a_yxio: a_yxio.transpose(3, 2, 0, 1))
HEADS_IN = Layout(
    lambda a_oi, h: a_oi.T.reshape(a_oi.shape[1], h, -1), lambda a_ihk: a_ihk.reshape(len(a_ihk), -1).T, True
)
HEADS_BIAS = Layout(lambda a_o, h: a_o.reshape(h, -1), lambda a_hk: a_hk.reshape(-1), True)
HEADS_OUT = Layout(
    lambda a_oi, h: a_oi.T.reshape(h, -1, len(a_oi)), lambda a_hko: a_hko.reshape(-1, a_hko.shape[-1]).T, True
)
ROWS = Layout(lambda a_nd, h: a_nd[None], lambda a_1nd: a_1nd[0])
GROUP_NORM = Layout(lambda a, h: a, lambda a_o: a_o.reshape(1, 1, 1, -1))


class Row(NamedTuple):
    """One parameter of ours: which array of theirs it is, in which layout, which of its parts."""

    ours: str
    theirs: str
    layout: Layout = SAME
    nth: int = 0
    of: int = 1
    also: tuple[str, ...] = ()  # older names, read but never written

    def read(self, array: np.ndarray, heads: int) -> np.ndarray:
        """Our array, a view of theirs. Raises ValueError or IndexError where the shape does not allow it."""
        if self.of == 1:
            return self.layout.read(array, heads)
        if len(array) % self.of:
            raise ValueError(f"{len(array)} rows are not {self.of} equal parts")
        size = len(array) // self.of
        return self.layout.read(array[self.nth * size : (self.nth + 1) * size], heads)


class Source(NamedTuple):
    """Where a parameter of ours lies: the array of theirs, its row, and the block of a scanned stack."""

    array: str
    row: Row
    block: int | None = None

    def read(self, array: np.ndarray, heads: int) -> np.ndarray:
        """Our array, a view of theirs. Raises ValueError or IndexError where the shape does not allow it."""
        return self.row.read(array if self.block is None else array[self.block], heads)

    def shape(self, shape: Shape, heads: int) -> Shape:
        """The shape that `read` gives for an array of `shape`, or `shape` where it cannot be read."""
        empty = np.broadcast_to(np.float32(0), shape)  # of any size, without memory
        try:
            return self.read(empty, heads).shape
        except (ValueError, IndexError, TypeError):
            return shape


@dataclasses.dataclass(frozen=True, eq=False)
class Dialect:
    """How one code base stores one family of models. Every field but the first five has a usual value."""

    name: str  # what a user calls the dialect
    variant: str  # the family within it
    rows: tuple[Row, ...]
    holds: Callable[[Model], bool]  # whether a model that is to be written is of this family
    preprocess: Callable[[Model], Preprocess]  # what published results were measured with
    fits: Callable[[Shapes], bool] = lambda shapes: True  # what tells variants of the same names apart
    # Writing: our arrays with the positions that the family has, and the names around theirs.
    pack: Callable[[Flat, Model], Flat] = lambda params, model: params
    lacks: Callable[[Model], list[str]] = (
        lambda model: []
    )  # parameters that a row names, but not beside others
    prefix: str = ""
    beside_patch: str = ""  # another array that is to be where the patch embedding is
    prefixed: Callable[[str, Model], bool] = lambda name, model: True
    mask: str = ""  # the array for masked patches, which their code misses when it loads
    mask_rank: int = 2  # its dimensions, all of them 1 but the width
    # What the arrays do not tell.
    numerics: dict[str, Any] = dataclasses.field(default_factory=dict)  # fields of the model
    derived: Callable[[Model], dict[str, Any]] = lambda model: {}  # fields that follow from others
    # Fields that readers of the family choose, so that our files tell them in a line of their own.
    chosen: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()  # fields that neither arrays nor the family tell: a file alone is refused
    heads: dict[int, int] = dataclasses.field(default_factory=dict)  # by width, if not as usual
    posemb_method: str = "official"  # how the family resizes positions
    class_slot: bool = False  # the class token always has a position; else its count tells
    absent_posemb: Literal["none", "sincos2d"] = "none"  # what a file without positions means
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)  # {pattern: why no model here uses it}
    stack: tuple[str, str] = ("", "")  # the names of all blocks scanned, and of one
    # transformers' config.json of a model, of its common fields and of those of its head; None: no folders.
    config: Callable[[Model, dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None

    @functools.cached_property
    def _by_ours(self) -> list[tuple[re.Pattern[str], Row]]:
        return [(pattern(row.ours), row) for row in self.rows]

    @functools.cached_property
    def _by_theirs(self) -> list[tuple[re.Pattern[str], Row]]:
        return [(pattern(theirs), row) for row in self.rows for theirs in (row.theirs, *row.also)]

    @property
    def label(self) -> str:
        """The dialect, and the family within it if it has several."""
        return self.name if self.variant == self.name else f"{self.name} ({self.variant})"

    @functools.cached_property
    def patch(self) -> str:
        """The name of the patch embedding, which every model has."""
        found = self.theirs("embed/patch/kernel")
        return found[0] if found else ""

    @functools.cached_property
    def per_head(self) -> bool:
        """Whether the arrays do not tell the heads, but are read with their number."""
        return any(row.layout.per_head for row in self.rows)

    def theirs(self, ours: str) -> tuple[str, Row] | None:
        """The array of theirs that holds one of ours, and its row."""
        found = ((p.fullmatch(ours), row) for p, row in self._by_ours)
        return next(((fill(row.theirs, match), row) for match, row in found if match), None)

    def ours(self, theirs: str) -> list[tuple[str, Row]]:
        """Our names that lie in one array of theirs; none for an array that no row knows."""
        found = [(p.fullmatch(theirs), row) for p, row in self._by_theirs]
        return [(fill(row.ours, match), row) for match, row in found if match]

    def find(self, name: str, shape: Shape) -> list[tuple[str, Row, int | None]]:
        """What of ours lies in an array of theirs: our name, its row, and the block of a scanned stack."""
        scanned, single = self.stack
        if not (scanned and name.startswith(scanned) and shape and shape[0] <= MOST_BLOCKS):
            return [(ours, row, None) for ours, row in self.ours(name)]
        names = (single.format(i=i) + name.removeprefix(scanned) for i in range(shape[0]))
        return [(ours, row, i) for i, one in enumerate(names) for ours, row in self.ours(one)]

    def heads_of(self, ours: str, heads: int) -> int:
        """Heads of one parameter of a model of so many: attention pooling may have its own."""
        return self.numerics.get("pool_heads", heads) if ours.startswith("pool/") else heads

    def why_ignored(self, theirs: str) -> str:
        """Why no model here has a use for an array of theirs; empty if it is not such a one."""
        return next((why for known, why in self.ignored.items() if re.fullmatch(known, theirs)), "")

    def arrays(self, params: Flat, model: Model) -> Flat:
        """Their C-contiguous arrays of ours, each of which has a row, under the names of a whole file."""
        gathered: dict[str, dict[int, np.ndarray]] = {}
        for name, array in self.pack(params, model).items():
            found = self.theirs(name)
            if found is None:
                raise KeyError(name)
            theirs, row = found
            parts = gathered.setdefault(theirs, {})
            parts[row.nth] = row.layout.write(array)
            if row.of > 1:  # a part that the model lacks, as a masked bias of the keys, is zero
                for i in range(row.of):
                    parts.setdefault(i, np.zeros_like(parts[row.nth]))
        ordered = {name: [found[i] for i in sorted(found)] for name, found in gathered.items()}
        whole = {name: p[0] if len(p) == 1 else np.concatenate(p) for name, p in ordered.items()}
        if self.mask:
            whole[self.mask] = np.zeros((1,) * (self.mask_rank - 1) + (model.width,), np.float32)
        full = lambda name: self.prefix + name if self.prefixed(name, model) else name
        return {full(name): np.ascontiguousarray(array) for name, array in whole.items()}


def pattern(template: str) -> re.Pattern[str]:
    """Matches the names that a template with placeholders stands for."""
    parts = re.split(r"\{(\w+)\}", template)
    literals, holes = parts[::2], parts[1::2]
    groups = [f"(?P<{hole}>{PLACEHOLDERS[hole]})" for hole in holes]
    return re.compile("".join(re.escape(a) + b for a, b in zip(literals, [*groups, ""], strict=True)))


def fill(template: str, match: re.Match[str]) -> str:
    """`template` with its placeholders as they were found."""
    found = match.groupdict()
    for one, zero in FROM_ZERO.items():
        if one in found:
            found[zero] = str(int(found[one]) - 1)
        elif zero in found:
            found[one] = str(int(found[zero]) + 1)
    return template.format(**found)


def norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """A LayerNorm of torch's."""
    return Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")


def dense(ours: str, theirs: str, nth: int = 0, of: int = 1) -> tuple[Row, ...]:
    """A linear layer of torch's, or one of those that lie in one array."""
    kernel = Row(f"{ours}/kernel", f"{theirs}.weight", DENSE, nth, of)
    return kernel, Row(f"{ours}/bias", f"{theirs}.bias", SAME, nth, of)


def biasless(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Those of `rows` that are no bias."""
    return tuple(row for row in rows if not row.ours.endswith("/bias"))


def conv(ours: str, theirs: str) -> tuple[Row, ...]:
    """A convolution of torch's."""
    return Row(f"{ours}/kernel", f"{theirs}.weight", CONV), Row(f"{ours}/bias", f"{theirs}.bias")


def project(ours: str, theirs: str, nth: int = 0, of: int = 1, dot: str = ".") -> tuple[Row, ...]:
    """A projection to heads; `dot` is "_" in torch's own attention module."""
    kernel = Row(f"{ours}/kernel", f"{theirs}{dot}weight", HEADS_IN, nth, of)
    return kernel, Row(f"{ours}/bias", f"{theirs}{dot}bias", HEADS_BIAS, nth, of)


def apart(ours: str, theirs: Callable[[str], str]) -> tuple[Row, ...]:
    """Projections to queries, keys and values in an array each, called `theirs(name)`."""
    return tuple(row for name in ("query", "key", "value") for row in project(f"{ours}/{name}", theirs(name)))


def out(ours: str, theirs: str) -> tuple[Row, ...]:
    """The projection of all heads to the width."""
    return Row(f"{ours}/kernel", f"{theirs}.weight", HEADS_OUT), Row(f"{ours}/bias", f"{theirs}.bias")


def fused(ours: str, theirs: str, dot: str = ".") -> tuple[Row, ...]:
    """Query, key and value in one array, in this order."""
    rows = [project(f"{ours}/{name}", theirs, i, 3, dot) for i, name in enumerate(("query", "key", "value"))]
    return tuple(row for pair in rows for row in pair)


def add_class_slot(params: Flat, model: Model) -> Flat:
    """Positions with a slot for each class token, which is zero where the model had none."""
    if not model.class_token or model.posemb != "learned" or model.posemb_class_slot:
        return params
    pos_1nd = params["embed/positions"]
    slots_1nd = np.zeros((1, 1 + model.distill_token, pos_1nd.shape[2]), np.float32)
    return params | {"embed/positions": np.concatenate([slots_1nd, pos_1nd], axis=1)}


def merge_class_slot(params: Flat, model: Model) -> Flat:
    """Positions of patches alone: the class tokens' are added to the tokens, which computes the same."""
    if not model.class_token or model.posemb != "learned" or not model.posemb_class_slot:
        return params
    pos_1nd, names = params["embed/positions"], ["embed/class_token"]
    names += ["embed/distill_token"] if model.distill_token else []
    merged = {name: params[name] + pos_1nd[:, i : i + 1] for i, name in enumerate(names)}
    return params | merged | {"embed/positions": pos_1nd[:, len(names) :]}
