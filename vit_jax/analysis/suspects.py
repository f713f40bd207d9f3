"""Which labels of a data set are suspect: those that heads trained on other examples find unlikely.

Dims: n examples, d features, c classes.
"""

from typing import Any, NamedTuple

import numpy as np

from vit_jax.analysis import probes

FOLDS = 5


class HeldOut(NamedTuple):
    """By heads that did not see an example: loss float32, likeliest class int32, its probability float32."""

    loss: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    def ranked(self, label_n: np.ndarray) -> np.ndarray:
        """Examples of which another class than the label is likeliest, the highest loss first."""
        other = np.flatnonzero(self.predicted != label_n)
        return other[np.argsort(-self.loss[other], kind="stable")]


def held_out(
    x_nd: np.ndarray, label_n: np.ndarray, *, rate: float, decay: float, classes: int, epochs: int, seed: int
) -> HeldOut:
    """Of linear heads, each trained as `probes.train_head` on all folds but one, what they say of that one.

    The loss is -log of the label's probability: to rank by it is to rank by self-confidence, arXiv:1911.00068
    section 3. Features are standardised by the examples that a head is trained on.
    """
    fold_n = folds(label_n, seed=seed)
    logits_nc = np.zeros((len(label_n), classes))
    options: Any = {"rate": rate, "decay": decay, "classes": classes, "epochs": epochs, "seed": seed}
    for fold in range(FOLDS):
        held = fold_n == fold
        fit = probes.fitted(x_nd[~held], label_n[~held], **options)
        logits_nc[held] = x_nd[held] @ fit.kernel + fit.bias
    high_n = logits_nc.max(axis=1)
    log_sum_n = np.log(np.exp(logits_nc - high_n[:, None]).sum(axis=1)) + high_n
    loss_n = log_sum_n - logits_nc[np.arange(len(label_n)), label_n]
    predicted_n = logits_nc.argmax(axis=1).astype(np.int32)
    return HeldOut(loss_n.astype(np.float32), predicted_n, np.exp(high_n - log_sum_n).astype(np.float32))


def folds(label_n: np.ndarray, *, seed: int) -> np.ndarray:
    """The fold of each example: random, with as many of each class in each of them, or one more."""
    shuffled_n = np.random.default_rng(seed).permutation(len(label_n))
    by_class_n = shuffled_n[np.argsort(label_n[shuffled_n], kind="stable")]
    fold_n = np.zeros(len(label_n), np.int64)
    fold_n[by_class_n] = np.arange(len(label_n)) % FOLDS
    return fold_n
