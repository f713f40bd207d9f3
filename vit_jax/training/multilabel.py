"""Metrics of images that may be of several classes, or of none: average precision and F1.

They are taken from the logits of a whole split, on the host in float64. Dims: n examples, b batch, c classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.data.source import Source
from vit_jax.sections import Data, Spec
from vit_jax.training import mesh as meshes
from vit_jax.training.evaluate import Evaluator, want_examples
from vit_jax.training.step import normalise


class F1(NamedTuple):
    """2 tp / (2 tp + fp + fn): of all decisions, the mean of the classes, and of each (nan without any)."""

    micro: float
    macro: float
    by_class: np.ndarray


class MultiLabelEvaluator(Evaluator):
    """As `Evaluator`, of sources of several labels per example."""

    def __init__(self, model: nn.Module, spec: Spec, mesh: Mesh, batch_size: int) -> None:
        super().__init__(model, spec, mesh, batch_size)

        def forward(params: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
            logits_bc: Any = model.apply({"params": params}, normalise(batch.image, spec.preprocess))
            return logits_bc.astype(jnp.float32), batch.label, batch.weight

        self._forward = jax.jit(forward, out_shardings=meshes.everywhere(mesh))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what a call measures."""
        return tuple(summarise(np.zeros((1, 2)), np.eye(1, 2)))

    def compile(self, params: Any) -> jax.stages.Compiled:
        """What the first call would compile."""
        return self._forward.lower(params, self._batch_like()).compile()

    def __call__(
        self,
        params: Any,
        source: Source,
        cfg: Data,
        sent: Callable[[], None] = lambda: None,
        confused: Callable[[np.ndarray], None] = lambda counts_cc: None,
    ) -> dict[str, float]:
        """What `summarise` says of `source` at thresholds of 0.5. `sent` is called after each batch.

        `confused` is not: an example of several classes is not taken for one.
        """
        made = []
        for batch in self._batches(source, cfg):
            logits_bc, label_bc, weight_b = jax.device_get(self._forward(params, batch))
            made.append((logits_bc[weight_b > 0], label_bc[weight_b > 0]))
            sent()
        return summarise(*(np.concatenate(parts) for parts in zip(*made, strict=True)))


def summarise(logits_nc: np.ndarray, label_nc: np.ndarray) -> dict[str, float]:
    """{"examples", "map", "f1_micro", "f1_macro", "top1", "worst", "worst_class", "loss"}.

    Labels are 0 or 1; a class is predicted from a logit of 0 on. "map" is the mean of the average precisions
    of the classes that have examples, "worst" the least of them, that of "worst_class"; "top1" is the share
    of examples whose likeliest class is one of theirs; "loss" the binary cross-entropies of the classes,
    summed, a mean over examples. Raises UserError if there are no examples.
    """
    want_examples(len(label_nc))
    own_nc, z_nc = np.asarray(label_nc) > 0, np.asarray(logits_nc, np.float64)
    precision_c = average_precisions(z_nc, own_nc)
    f1 = f1_scores(z_nc >= 0, own_nc)
    known = bool(own_nc.any())
    best_n = np.take_along_axis(own_nc, z_nc.argmax(axis=1)[:, None], axis=1)[:, 0]
    return {
        "examples": len(own_nc),
        "map": float(np.nanmean(precision_c)) if known else 0.0,
        "f1_micro": f1.micro,
        "f1_macro": f1.macro,
        "top1": float(best_n.mean()),
        "worst": float(np.nanmin(precision_c)) if known else 0.0,
        "worst_class": int(np.nanargmin(precision_c)) if known else 0,
        "loss": float((np.logaddexp(0.0, z_nc) - own_nc * z_nc).sum(axis=1).mean()),
    }


def average_precisions(score_nc: np.ndarray, own_nc: np.ndarray) -> np.ndarray:
    """sum_k (recall_k - recall_{k-1}) precision_k of each class over its distinct scores, float64 [c].

    As scikit-learn's average_precision_score: no interpolation; equal scores are one step. nan for a class
    without examples.
    """
    return np.array([_average_precision(score_nc[:, c], own_nc[:, c]) for c in range(own_nc.shape[1])])


def _average_precision(score_n: np.ndarray, own_n: np.ndarray) -> float:
    found_k, taken_k, _ = cuts(score_n, own_n)
    if not len(found_k) or not found_k[-1]:
        return float("nan")
    return float((np.diff(found_k, prepend=0) * (found_k / taken_k)).sum() / found_k[-1])


def cuts(score_n: np.ndarray, own_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(found, taken, score) of each distinct score, the highest first: what is taken from it on, float64 [k].

    `found` counts the examples of the class among those taken.
    """
    order_n = np.argsort(-score_n, kind="stable")
    sorted_n = score_n[order_n]
    last_k = np.flatnonzero(np.append(np.diff(sorted_n) != 0, True)) if len(sorted_n) else order_n
    found_k = np.cumsum(own_n[order_n], dtype=np.float64)[last_k]
    return found_k, last_k + 1.0, sorted_n[last_k]


def f1_scores(taken_nc: np.ndarray, own_nc: np.ndarray) -> F1:
    """F1 of predicted sets, as scikit-learn's f1_score(zero_division=nan).

    A class that has no example and is predicted for none does not count in the mean.
    """
    both_c = (taken_nc & own_nc).sum(axis=0, dtype=np.float64)
    either_c = taken_nc.sum(axis=0, dtype=np.float64) + own_nc.sum(axis=0, dtype=np.float64)
    by_class = np.where(either_c > 0, 2 * both_c / np.maximum(either_c, 1), np.nan)
    total = either_c.sum()
    macro = float(np.nanmean(by_class)) if total else 0.0
    return F1(float(2 * both_c.sum() / total) if total else 0.0, macro, by_class)
