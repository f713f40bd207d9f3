"""What `probe --head` writes: the probed model with a linear head of its own."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax import config, paths
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.cli.probe import Probed


def check(args: argparse.Namespace, loaded: Any, data: Any, columns: Any, classes: int) -> None:
    """Raises UserError, before any feature is computed, unless `args.head` can be written."""
    from vit_jax.analysis import features
    from vit_jax.weights import save

    cfg = loaded.spec.model
    if cfg.distill_token:
        raise UserError("--head writes one head, and the model has one for each of its two tokens: train it")
    if (seen := features.seen_by_head(cfg)) not in columns:
        raise UserError(f"--head needs a probe of {seen.name}, which the model's head sees: --pooling model")
    kernel, bias = (np.zeros(shape, np.float32) for shape in ((cfg.features, classes), (classes,)))
    model = dataclasses.replace(cfg, classes=classes)
    params, preprocess = loaded.params | _head(kernel, bias), config.preprocess_of(data)
    save.contents_of(paths.of(args.head), params, model, dialect=args.dialect, preprocess=preprocess)


def write(args: argparse.Namespace, probed: "Probed", linear: dict[str, Any]) -> dict[str, Any]:
    """Write the file, and what `--json` prints of it.

    The head has the rate and decay that the held-out part chose for its features, and sees all of the split.
    """
    from vit_jax.analysis import features, probes
    from vit_jax.weights import save

    cfg, split, names = probed.loaded.spec.model, probed.train, probed.names
    seen = features.seen_by_head(cfg)
    chosen = linear["columns"][probed.columns.index(seen)]
    options: Any = {"rate": chosen["lr"], "decay": chosen["weight_decay"], "classes": len(names)}
    fit = probes.fitted(split.columns[seen], split.label, epochs=args.epochs, seed=args.seed, **options)
    save.write(
        args.head,
        probed.loaded.params | _head(fit.kernel, fit.bias),
        dataclasses.replace(cfg, classes=len(names)),
        dialect=args.dialect,
        preprocess=config.preprocess_of(probed.data),
        class_names=tuple(names),
    )
    return {"path": str(args.head), **chosen}


def text(facts: dict[str, Any]) -> str:
    """One line of what was written."""
    return (
        f"wrote {facts['path']}: a head of {facts['features']} with lr {facts['lr']:g}, decay "
        f"{facts['weight_decay']:g} ({facts['held_out']:.2%} held out), trained on all of the train split"
    )


def _head(kernel_dc: np.ndarray, bias_c: np.ndarray) -> dict[str, Any]:
    return {"head": {"kernel": kernel_dc.astype(np.float32), "bias": bias_c.astype(np.float32)}}
