"""What `probe --head` writes: the probed model with a linear head of its own."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax import config
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.cli.probe import Probed


def check(args: argparse.Namespace, loaded: Any, data: Any, columns: Any, names: Sequence[str]) -> None:
    """Raises UserError, before any feature is computed, unless `args.head` can be written."""
    from vit_jax.analysis import features, probes

    cfg = loaded.spec.model
    if cfg.distill_token:
        raise UserError("--head writes one head, and the model has one for each of its two tokens: train it")
    if (seen := features.seen_by_head(cfg)) not in columns:
        raise UserError(f"--head needs a probe of {seen.name}, which the model's head sees: --pooling model")
    zeros = probes.Fit(np.zeros((cfg.features, len(names))), np.zeros(len(names)))
    _write(args, loaded, data, names, zeros, check_only=True)


def write(args: argparse.Namespace, probed: "Probed", linear: dict[str, Any]) -> dict[str, Any]:
    """Write the file, and what `--json` prints of it.

    The head has the rate and decay that the held-out part chose for its features, and sees all of the split.
    """
    from vit_jax.analysis import features, probes

    split, names = probed.train, probed.names
    seen = features.seen_by_head(probed.loaded.spec.model)
    chosen = linear["columns"][probed.columns.index(seen)]
    options: Any = {"rate": chosen["lr"], "decay": chosen["weight_decay"], "classes": len(names)}
    fit = probes.fitted(split.columns[seen], split.label, epochs=args.epochs, seed=args.seed, **options)
    _write(args, probed.loaded, probed.data, names, fit)
    return {"path": str(args.head), **chosen}


def _write(
    args: argparse.Namespace, loaded: Any, data: Any, names: Sequence[str], fit: Any, check_only: bool = False
) -> None:
    from vit_jax.weights import save

    head = {"kernel": fit.kernel.astype(np.float32), "bias": fit.bias.astype(np.float32)}
    save.write(
        args.head,
        loaded.params | {"head": head},
        dataclasses.replace(loaded.spec.model, classes=len(names)),
        dialect=args.dialect,
        preprocess=config.preprocess_of(data),
        class_names=tuple(names),
        check_only=check_only,
    )


def text(facts: dict[str, Any]) -> str:
    """One line of what was written."""
    return (
        f"wrote {facts['path']}: a head of {facts['features']} with lr {facts['lr']:g}, decay "
        f"{facts['weight_decay']:g} ({facts['held_out']:.2%} held out), trained on all of the train split"
    )
