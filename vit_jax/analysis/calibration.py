"""Confidences that mean what they say: one temperature, and sets that hold the truth as often as asked.

Of images of several classes, or of none: one temperature, and a threshold a class.

Dims: n examples, c classes.
"""

import dataclasses
import json
import math
import os
import sys
from typing import Any

import numpy as np

from vit_jax import paths
from vit_jax.analysis.features import digest_of
from vit_jax.errors import UserError
from vit_jax.paths import Path
from vit_jax.training.multilabel import cuts

FILE = "calibration.json"  # beside the run
LEVELS = 1000  # coverages that are kept, in steps of a thousandth
UNFITTED = 0.5  # threshold of a class that nothing is known of
MOST = 100.0  # a temperature beyond this is no calibration, but a broken model


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Fitted on `examples`; `scores[k - 1]` is the conformal quantile of 1 - p(label) for coverage k/1000.

    Of several labels per image there are no scores, but `thresholds`: a class is predicted from p on.
    """

    temperature: float
    scores: tuple[float, ...]
    examples: int
    thresholds: tuple[float, ...] = ()

    def sets(self, probability_nc: np.ndarray, coverage: float) -> np.ndarray:
        """Whether each class is in the set that holds the label with at least that chance, bool [n, c].

        Raises UserError for a coverage outside (0, 1).
        """
        if not 0 < coverage < 1:
            raise UserError(f"--coverage={coverage} is not between 0 and 1: use 0.9, for example")
        if self.thresholds:
            raise UserError("--coverage is for models of one class per image: leave it out")
        score = self.scores[min(math.ceil(coverage * LEVELS - 1e-9), LEVELS) - 1]
        return 1 - probability_nc <= score

    def of_classes(self, to: np.ndarray, classes: int) -> "Calibration":
        """The same for a model of `classes`, of which those fitted are `to`; the others get UNFITTED."""
        threshold_c = np.full(classes, UNFITTED)
        threshold_c[to] = self.thresholds
        return dataclasses.replace(self, thresholds=tuple(threshold_c.tolist()))


def fit(logits_nc: np.ndarray, label_n: np.ndarray, *, loss: str = "softmax") -> Calibration:
    """Temperature by maximum likelihood (arXiv:1706.04599 section 4.2), then split-conformal quantiles.

    The quantile for coverage q is the ceil((n + 1) q)-th smallest score, or 1, the set of all classes, where
    n is too small for it (arXiv:2107.07511 section 1). With labels [n, c], temperature and thresholds.
    """
    temperature = fit_temperature(logits_nc, label_n, loss=loss)
    if label_n.ndim == 2:
        p_nc = sigmoid(np.asarray(logits_nc, np.float64) / temperature)
        return Calibration(temperature, (), len(label_n), fit_thresholds(p_nc, label_n > 0))
    p_n = np.take_along_axis(CONFIDENCE[loss](logits_nc / temperature), label_n[:, None], axis=1)[:, 0]
    ordered_n, n = np.sort(1 - p_n), len(label_n)
    ranks = [math.ceil((n + 1) * k / LEVELS - 1e-9) for k in range(1, LEVELS + 1)]
    scores = tuple(float(ordered_n[r - 1]) if r <= n else 1.0 for r in ranks)
    return Calibration(temperature, scores, n)


def fit_temperature(logits_nc: np.ndarray, label_n: np.ndarray, *, loss: str = "softmax") -> float:
    """The T that minimises the mean of -log softmax(z / T)[label], or of the sum of binary cross-entropies.

    Convex in 1/T: the derivative of both, mean(sum(p z) - z[label]), is brought to 0 by bisection. With
    labels [n, c] of 0 and 1, z[label] is the sum over an example's classes.
    """
    z_nc = np.asarray(logits_nc, np.float64)
    several = label_n.ndim == 2
    z_n = (
        (z_nc * label_n).sum(axis=1) if several else np.take_along_axis(z_nc, label_n[:, None], axis=1)[:, 0]
    )
    slope = lambda inverse: float(((CONFIDENCE[loss](z_nc * inverse) * z_nc).sum(axis=1) - z_n).mean())
    low, high = 1 / MOST, MOST
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def fit_thresholds(p_nc: np.ndarray, own_nc: np.ndarray) -> tuple[float, ...]:
    """For each class the p from which on predicting it has the best F1; of equals the highest.

    Each lies half-way to the next probability below. UNFITTED for a class without examples.
    """
    return tuple(_threshold(p_nc[:, c], own_nc[:, c]) for c in range(own_nc.shape[1]))


def _threshold(p_n: np.ndarray, own_n: np.ndarray) -> float:
    found_k, taken_k, p_k = cuts(p_n, own_n)
    if not own_n.any():
        return UNFITTED
    best = int((2 * found_k / (taken_k + own_n.sum())).argmax())
    below = p_k[best + 1] if best + 1 < len(p_k) else 0.0
    between = float((p_k[best] + below) / 2)
    return between if between > below else float(p_k[best])


def softmax(z_nc: np.ndarray) -> np.ndarray:
    """Of each row."""
    e_nc = np.exp(z_nc - z_nc.max(axis=1, keepdims=True))
    return e_nc / e_nc.sum(axis=1, keepdims=True)


def sigmoid(z_nc: np.ndarray) -> np.ndarray:
    """Of each number, without overflow."""
    return 0.5 * (1 + np.tanh(z_nc / 2))


CONFIDENCE = {"softmax": softmax, "sigmoid": sigmoid}  # by the loss of the training


def _beside(path: Path) -> Path:
    """Where the calibration of a model lies: in its folder, or beside its file."""
    return path / FILE if path.is_dir() else path.with_name(f"{path.name}.{FILE}")


def save(ref: str | os.PathLike[str], calibration: Calibration, params: Any) -> Path:
    """Write it beside `ref`, with a digest of the parameters that it was fitted on.

    Raises UserError if that is no place on this machine.
    """
    try:
        path = _beside(paths.of(ref))
        tree = dataclasses.asdict(calibration) | {"params": digest_of(params)}
        paths.write(path, json.dumps(tree) + "\n")
    except UserError as error:
        raise UserError(f"{error}: calibrate a run or a file of yours") from error
    return path


def load(ref: str | os.PathLike[str], params: Any) -> Calibration | None:
    """The calibration beside `ref`, or None, also where it was fitted on other parameters, which stderr says.

    A run that goes on, or a file that is written again, leaves such a one. Raises UserError for a broken one.
    """
    if (model := paths.at_hand(ref)) is None:
        return None
    path = _beside(model)
    with paths.reached(path):
        text = path.read_text() if path.is_file() else None
    if text is None:
        return None
    try:
        tree = json.loads(text)
        found = Calibration(
            float(tree["temperature"]),
            tuple(map(float, tree["scores"])),
            int(tree["examples"]),
            tuple(map(float, tree.get("thresholds", ()))),  # which older files have not
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a calibration ({error}): run evaluate --calibrate again") from error
    if tree.get("params") == digest_of(params):
        return found
    print(
        f"{path} was fitted on other weights and is not used: run evaluate --calibrate again", file=sys.stderr
    )
    return None
