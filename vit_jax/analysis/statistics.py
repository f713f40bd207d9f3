"""How sure a measured accuracy and a confidence are. Host arithmetic in numpy, float64.

Dims: n examples, c classes.
"""

import math
from typing import NamedTuple

import numpy as np

BINS = 15  # of arXiv:1706.04599
LEVEL = 0.95  # of intervals


class McNemar(NamedTuple):
    """Examples that only the first and only the second gets right, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


def expected_calibration_error(confidence_n: np.ndarray, correct_n: np.ndarray) -> float:
    """Mean gap of accuracy to confidence over BINS equal bins of confidence, weighted by their examples.

    arXiv:1706.04599 eq. 3.
    """
    which_n = np.minimum((confidence_n * BINS).astype(int), BINS - 1)
    gap_n = np.asarray(correct_n, np.float64) - np.asarray(confidence_n, np.float64)
    return float(np.abs(np.bincount(which_n, weights=gap_n, minlength=BINS)).sum() / len(gap_n))


def bootstrap_interval(correct_n: np.ndarray, *, draws: int = 2000) -> tuple[float, float]:
    """The percentile interval at LEVEL of the accuracy under resampling of the examples.

    Resampling hits and misses n times is one binomial draw of the hits. Efron, Annals of Statistics 7 (1979).
    """
    n, hits = len(correct_n), int(np.sum(correct_n))
    means = np.random.default_rng(0).binomial(n, hits / n, size=draws) / n
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mcnemar(first_n: np.ndarray, second_n: np.ndarray) -> McNemar:
    """Exact test that two models err equally often on the same examples. McNemar, Psychometrika 12 (1947).

    Under it each discordant example is a fair coin: p = 2 P[Binomial(a + b, 1/2) <= min(a, b)], at most 1.
    """
    first_n, second_n = np.asarray(first_n, bool), np.asarray(second_n, bool)
    a, b = int((first_n & ~second_n).sum()), int((second_n & ~first_n).sum())
    log_choose = lambda k: math.lgamma(a + b + 1) - math.lgamma(k + 1) - math.lgamma(a + b - k + 1)
    tail = math.fsum(math.exp(log_choose(k) - (a + b) * math.log(2)) for k in range(min(a, b) + 1))
    return McNemar(a, b, min(1.0, 2 * tail))


def confusion(label_n: np.ndarray, predicted_n: np.ndarray, classes: int) -> np.ndarray:
    """Counts [label, prediction]."""
    return np.bincount(label_n * classes + predicted_n, minlength=classes**2).reshape(classes, classes)
