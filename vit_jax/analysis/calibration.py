"""Confidences that mean what they say: one temperature, and sets that hold the truth as often as asked.

Dims: n examples, c classes.
"""

import dataclasses
import json
import math
import os

import numpy as np

from vit_jax import paths
from vit_jax.errors import UserError
from vit_jax.paths import Path

FILE = "calibration.json"  # beside the run
LEVELS = 1000  # coverages that are kept, in steps of a thousandth
MOST = 100.0  # a temperature beyond this is no calibration, but a broken model


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Fitted on `examples`; `scores[k - 1]` is the conformal quantile of 1 - p(label) for coverage k/1000."""

    temperature: float
    scores: tuple[float, ...]
    examples: int

    def sets(self, probability_nc: np.ndarray, coverage: float) -> np.ndarray:
        """Whether each class is in the set that holds the label with at least that chance, bool [n, c].

        Raises UserError for a coverage outside (0, 1).
        """
        if not 0 < coverage < 1:
            raise UserError(f"--coverage={coverage} is not between 0 and 1: use 0.9, for example")
        score = self.scores[min(math.ceil(coverage * LEVELS - 1e-9), LEVELS) - 1]
        return 1 - probability_nc <= score


def fit(logits_nc: np.ndarray, label_n: np.ndarray, *, loss: str = "softmax") -> Calibration:
    """Temperature by maximum likelihood (arXiv:1706.04599 section 4.2), then split-conformal quantiles.

    The quantile for coverage q is the ceil((n + 1) q)-th smallest score, or 1, the set of all classes, where
    n is too small for it (arXiv:2107.07511 section 1).
    """
    temperature = fit_temperature(logits_nc, label_n, loss=loss)
    p_n = np.take_along_axis(CONFIDENCE[loss](logits_nc / temperature), label_n[:, None], axis=1)[:, 0]
    ordered_n, n = np.sort(1 - p_n), len(label_n)
    ranks = [math.ceil((n + 1) * k / LEVELS - 1e-9) for k in range(1, LEVELS + 1)]
    scores = tuple(float(ordered_n[r - 1]) if r <= n else 1.0 for r in ranks)
    return Calibration(temperature, scores, n)


def fit_temperature(logits_nc: np.ndarray, label_n: np.ndarray, *, loss: str = "softmax") -> float:
    """The T that minimises the mean of -log softmax(z / T)[label], or of the sum of binary cross-entropies.

    Convex in 1/T: the derivative of both, mean(sum(p z) - z[label]), is brought to 0 by bisection.
    """
    z_nc = np.asarray(logits_nc, np.float64)
    z_n = np.take_along_axis(z_nc, label_n[:, None], axis=1)[:, 0]
    slope = lambda inverse: float(((CONFIDENCE[loss](z_nc * inverse) * z_nc).sum(axis=1) - z_n).mean())
    low, high = 1 / MOST, MOST
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def softmax(z_nc: np.ndarray) -> np.ndarray:
    """Of each row."""
    e_nc = np.exp(z_nc - z_nc.max(axis=1, keepdims=True))
    return e_nc / e_nc.sum(axis=1, keepdims=True)


def sigmoid(z_nc: np.ndarray) -> np.ndarray:
    """Of each number, without overflow."""
    return 0.5 * (1 + np.tanh(z_nc / 2))


CONFIDENCE = {"softmax": softmax, "sigmoid": sigmoid}  # by the loss of the training


def path_of(ref: str | os.PathLike[str]) -> Path:
    """Where the calibration of a reference lies: in its folder, or beside its file."""
    path = paths.of(ref)
    return path / FILE if path.is_dir() else path.with_name(f"{path.name}.{FILE}")


def save(ref: str | os.PathLike[str], calibration: Calibration) -> Path:
    """Write it beside `ref`. Raises UserError if that is no place on this machine."""
    try:
        path = path_of(ref)
        paths.write(path, json.dumps(dataclasses.asdict(calibration)) + "\n")
    except UserError as error:
        raise UserError(f"{error}: calibrate a run or a file of yours") from error
    return path


def load(ref: str | os.PathLike[str]) -> Calibration | None:
    """The calibration beside `ref`, or None. Raises UserError for a broken one."""
    if paths.in_web(str(ref)) or not (path := path_of(ref)).is_file():
        return None
    try:
        tree = json.loads(path.read_text())
        return Calibration(
            float(tree["temperature"]), tuple(map(float, tree["scores"])), int(tree["examples"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a calibration ({error}): run evaluate --calibrate again") from error
