"""Which split is read, and what of data without splits is kept for evaluation."""

import zlib
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from vit_jax.errors import UserError
from vit_jax.sections import Data

EVAL_SPLITS = ("validation", "val", "test")
EVAL_PARTS = 10  # one part in ten of data without splits is kept for evaluation


def pick(cfg: Data, have: Collection[str], *, train: bool) -> str:
    """The name of the split of `cfg`; for evaluation, if it names none, the first of EVAL_SPLITS there is."""
    if train:
        return cfg.train_split
    return cfg.eval_split or next((s for s in EVAL_SPLITS if s in have), EVAL_SPLITS[0])


def want_plain(cfg: Data, place: str) -> None:
    """Raise UserError if `cfg` names a split that `place`, data without names of splits, cannot mean."""
    if cfg.train_split != "train":
        raise UserError(f"{place} has no split {cfg.train_split}: set data.train_split=train")
    if cfg.eval_split not in ("", *EVAL_SPLITS):
        raise UserError(f"{place} has no split {cfg.eval_split} for evaluation: set data.eval_split=test")


def held_out(classes: Iterable[Sequence[str]], rule: str) -> set[str]:
    """The examples that `data.held_out=rule` keeps for evaluation, of the names of each class's examples."""
    return {name for names in classes for name in HELD_OUT[rule](names)}


def by_labels(names: Sequence[str], labels_n: np.ndarray, classes: int) -> list[list[str]]:
    """The names of each class's examples, and then of those of no class. Labels as `Source.labels`."""
    if labels_n.ndim == 2:
        member_cn = [*(labels_n.T > 0), ~(labels_n > 0).any(axis=1)]
    else:
        member_cn = [labels_n == label for label in range(classes)]
    return [[names[int(i)] for i in np.flatnonzero(member_n)] for member_n in member_cn]


def _by_file(files: Sequence[str]) -> list[str]:
    # By name, not by rank: adding files does not move others between the splits.
    return [file for file in files if _hash(file) % EVAL_PARTS == 0]


def _by_class(files: Sequence[str]) -> list[str]:
    # As many as a tenth is, at least one of two. In an order by name that begins with those of `_by_file`: of
    # each class an added file moves one other at most, and most move none.
    count = max((len(files) + EVAL_PARTS // 2) // EVAL_PARTS, int(len(files) > 1))
    return sorted(files, key=lambda file: (_hash(file) % EVAL_PARTS, _hash(file)))[:count]


def _hash(file: str) -> int:
    return zlib.crc32(file.encode())


HELD_OUT = {"by_class": _by_class, "by_file": _by_file}  # files of one class for evaluation, by data.held_out
