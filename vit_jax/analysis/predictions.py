"""Every example of a split through a model, once. Dims: n examples, b batch, h w pixels, c classes."""

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from vit_jax import paths
from vit_jax.analysis.calibration import CONFIDENCE
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.paths import Path
from vit_jax.training.evaluate import BEST, summarise, want_examples


class Predictions(NamedTuple):
    """One entry an example, in the order of the split; `logits` only if they were asked for."""

    label: np.ndarray  # int32
    predicted: np.ndarray  # int32
    confidence: np.ndarray  # float32, of `predicted`
    rank: np.ndarray  # int32, classes that score at least as high as the label: ties count against the model
    loss: np.ndarray  # float32
    logits: np.ndarray | None = None
    images_per_s: float = 0.0  # after the first batch, which compiles; 0 if there is no second one
    place: np.ndarray | None = None  # int64, in the split, of which some examples cannot be read
    path: np.ndarray | None = None  # text, its file, where examples have files


class Sets(NamedTuple):
    """Of several labels per image, one entry an example, in the order of the split."""

    label: np.ndarray  # uint8 [n, c]
    logits: np.ndarray  # float32 [n, c]
    images_per_s: float  # as in Predictions


class _Clock:
    """Counts examples after the first batch."""

    def __init__(self) -> None:
        self._start, self._timed = 0.0, 0

    def tick(self, examples: int) -> None:
        self._timed += examples if self._start else 0
        self._start = self._start or time.perf_counter()

    def rate(self) -> float:
        """Examples a second; 0 if there was no second batch."""
        return self._timed / (time.perf_counter() - self._start) if self._timed else 0.0


def collect_sets(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Sets:
    """Of (labels [b, c], float32 logits [b, c])."""
    clock, rows = _Clock(), []
    for label_bc, logits_bc in batches:
        rows.append((label_bc, logits_bc))
        clock.tick(len(logits_bc))
    rate = clock.rate()
    label_nc, logits_nc = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Sets(label_nc, logits_nc, rate)


def collect(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], *, keep_logits: bool, loss: str = "softmax"
) -> Predictions:
    """Of (labels [b], float32 logits [b, c]), with confidences by `loss`.

    Raises UserError for bad labels, and for no examples.
    """
    rows: list[tuple[np.ndarray, ...]] = []
    kept: list[np.ndarray] = []
    clock = _Clock()
    for label_b, logits_bc in batches:
        rows.append(_rows(logits_bc, label_b, loss))
        if keep_logits:
            kept.append(logits_bc)
        clock.tick(len(logits_bc))
    rate = clock.rate()
    label, predicted, confidence, rank, losses = (np.concatenate(c) for c in zip(*rows, strict=True))
    want_examples(len(label))
    logits = np.concatenate(kept) if keep_logits else None
    return Predictions(label, predicted, confidence, rank, losses, logits, rate)


def located(found: Predictions, index: np.ndarray, source: Source) -> Predictions:
    """The predictions with the places of their examples in `source`, and their files if it has any."""
    files = [source.path(int(i)) for i in index]
    return found._replace(place=index, path=np.array(files) if any(files) else None)


def metrics(found: Predictions, *, classes: int) -> dict[str, float]:
    """What `training.evaluate.summarise` says of them."""
    by_class = lambda weights: np.bincount(found.label, weights=weights, minlength=classes)
    correct_n = found.rank < 1
    loss, top5 = found.loss.sum(dtype=np.float64), (found.rank < BEST).sum()
    return summarise(loss, top5, by_class(correct_n), by_class(None))


def save(path: Path, found: Predictions | Sets) -> None:
    """An npz of one array a column. Raises UserError if it cannot be written."""
    columns: Any = {k: v for k, v in found._asdict().items() if isinstance(v, np.ndarray)}
    with paths.replacing(path) as file:
        np.savez(file, **columns)


def load(ref: str) -> Predictions | None:
    """What `save` wrote, or None if `ref` is no such file, or a broken one."""
    if not ref.endswith(".npz") or (path := paths.at_hand(ref)) is None or not path.is_file():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            columns: Any = {name: file[name] for name in Predictions._fields if name in file.files}
    except Exception:  # of many kinds, for as many ways to break a file; what reads weights tells which
        return None
    lacks = set(Predictions._fields) - columns.keys() - Predictions._field_defaults.keys()
    return None if lacks else Predictions(**columns)


def _rows(logits_bc: np.ndarray, label_b: np.ndarray, loss: str) -> tuple[np.ndarray, ...]:
    classes = logits_bc.shape[1]
    if label_b.max(initial=0) >= classes:
        raise UserError(
            f"the data has label {label_b.max()}, the model {classes} classes: give data of its own"
        )
    p_bc = CONFIDENCE[loss](logits_bc.astype(np.float64))
    predicted_b = logits_bc.argmax(axis=1).astype(np.int32)
    at = np.arange(len(label_b))
    rank_b = (logits_bc >= logits_bc[at, label_b][:, None]).sum(axis=1) - 1
    high_b = logits_bc.max(axis=1).astype(np.float64)
    sum_b = np.exp(logits_bc - high_b[:, None]).sum(axis=1)
    loss_b = np.log(sum_b) + high_b - logits_bc[at, label_b]
    return (
        label_b.astype(np.int32),
        predicted_b,
        p_bc[at, predicted_b].astype(np.float32),
        rank_b.astype(np.int32),
        loss_b.astype(np.float32),
    )
