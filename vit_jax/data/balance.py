"""The order in which `data.balance` draws examples: each class as often as any other.

Dims: n examples of a class, k classes that have examples.
"""

import dataclasses

import numpy as np

from vit_jax.data.source import Source, read_labels, want_one_class
from vit_jax.errors import UserError

CLASSES, WITHIN = 2, 3  # streams of random numbers, beside those of loader.py


@dataclasses.dataclass(frozen=True, eq=False)
class ByClass:
    """An endless stream of examples that any position can be asked of.

    Slots of the stream come in blocks of k, a random order of the classes each: the m-th block has the m-th
    draw of every class. Those of one class pass through all its n examples in a random order, then through
    them in another one: draw m is in pass m // n.
    """

    seed: int
    members: tuple[np.ndarray, ...]  # indices of the examples of each class that has any
    _orders: dict[tuple[int, int], tuple[int, np.ndarray]] = dataclasses.field(default_factory=dict)

    def example(self, slot: int) -> tuple[int, int]:
        """(pass, index): how often the class was passed through before, and which example it is."""
        block, at = divmod(slot, len(self.members))
        k = int(np.random.default_rng((CLASSES, self.seed, block)).permutation(len(self.members))[at])
        turn, rank = divmod(block, len(self.members[k]))
        return turn, int(self._order(k, turn)[rank])

    def _order(self, k: int, turn: int) -> np.ndarray:
        """The examples of class `k` in a pass; this one and the one before are kept for all threads."""
        held = self._orders.get((k, turn % 2))
        if held is None or held[0] != turn:
            rng = np.random.default_rng((WITHIN, self.seed, k, turn))
            held = self._orders[k, turn % 2] = (turn, rng.permutation(self.members[k]))
        return held[1]


def by_class(source: Source, seed: int) -> ByClass:
    """The stream over `source`; what cannot be read is left out where labels are known by reading alone.

    Raises UserError if no example can be read, or each may be of several classes.
    """
    want_one_class(source, "data.balance", True)
    label_n = read_labels(source)
    order_n = np.argsort(label_n, kind="stable").astype(np.int32)
    found, first = np.unique(label_n[order_n], return_index=True)
    members = np.split(order_n, first[1:])
    drawn = tuple(indices for label, indices in zip(found, members, strict=True) if label >= 0)
    if not drawn:
        raise UserError("data.balance=true: no example can be read, so no class can be drawn")
    return ByClass(seed, drawn)
