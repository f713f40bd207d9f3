"""Metrics over a whole split, each example counted exactly once."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.data import loader
from vit_jax.data.source import Source, class_name
from vit_jax.errors import UserError
from vit_jax.patches import Size
from vit_jax.sections import Data, Preprocess, Spec, seen_size
from vit_jax.training import mesh as meshes
from vit_jax.training.step import EvalSums, eval_step, normalise

BEST = 5  # of top-5
CONFUSED = 200  # most classes of which a run counts which is taken for which
SIGN = {
    "top1": 1,
    "top5": 1,
    "macro": 1,
    "map": 1,
    "loss": -1,
}  # of what `train.best` may name: 1 where more is better


class Evaluator:
    """A compiled evaluation step over global batches of `batch_size`, rounded up to fill the devices."""

    def __init__(self, model: nn.Module, spec: Spec, mesh: Mesh, batch_size: int) -> None:
        c, confused = spec.model.classes, spec.model.classes <= CONFUSED
        step = functools.partial(eval_step, model=model, preprocess=spec.preprocess, confused=confused)
        everywhere = meshes.everywhere(mesh)
        zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
        none = lambda: EvalSums(zeros(), zeros(), zeros(c), zeros(c), zeros(c, c) if confused else None)
        self._zero = jax.jit(none, out_shardings=everywhere)
        self._add = jax.jit(
            lambda sums, params, batch: jax.tree.map(lambda a, b: a + b, sums, step(params, batch)),
            out_shardings=everywhere,
        )
        self._spec, self._mesh = spec, mesh
        self._batch_size = _filling(batch_size, mesh)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what a call measures."""
        one_c = np.ones(self._spec.model.classes)
        return tuple(summarise(0.0, 0.0, one_c, one_c))

    def compile(self, params: Any) -> jax.stages.Compiled:
        """What the first call would compile; `params` are arrays, or their shapes and layout."""
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.everywhere(self._mesh))
        self._zero.lower().compile()
        sums = jax.tree.map(place, jax.eval_shape(self._zero))
        return self._add.lower(sums, params, self._batch_like()).compile()

    def __call__(
        self,
        params: Any,
        source: Source,
        cfg: Data,
        sent: Callable[[], None] = lambda: None,
        confused: Callable[[np.ndarray], None] = lambda counts_cc: None,
    ) -> dict[str, float]:
        """What `summarise` says of `source`, read as `cfg` says. `sent` is called after each batch.

        `confused` is called with the counts of examples [true, predicted], of up to CONFUSED classes.
        """
        sums = self._zero()
        for batch in self._batches(source, cfg):
            sums = self._add(sums, params, batch)
            sent()
        *totals, counts_cc = jax.device_get(sums)
        if counts_cc is not None:
            confused(counts_cc)
        return summarise(*totals)

    def _batches(self, source: Source, cfg: Data) -> Iterator[loader.Batch]:
        """Global batches on the devices."""
        spec, size, mesh = self._spec, self._batch_size, self._mesh
        rows = meshes.host_rows(size, mesh)
        seen = seen_size(spec.model, spec.preprocess)
        batches = loader.EvalBatches(source, spec.preprocess, seen, size, rows)
        return (meshes.to_devices(batch, size, mesh) for batch in loader.iterate(batches, cfg))

    def _batch_like(self) -> Any:
        return meshes.batch_like(self._batch_size, self._spec, self._mesh)


def walk(
    forward: Callable[[Any, Any], Any],
    params: Any,
    source: Source,
    cfg: Data,
    *,
    preprocess: Preprocess,
    image_size: Size,
    batch_size: int,
    on_progress: Callable[[int], None] = lambda done: None,
    which: Callable[[np.ndarray], None] = lambda index_b: None,
) -> Iterator[tuple[np.ndarray, Any]]:
    """(labels, `forward(params, image_bhwc)` as numpy) of each batch, on all of our devices.

    Labels are those of `loader.Batch`.

    `forward` is compiled, gives arrays with a row per example, and sees normalised images, or Patches. Each
    example comes once, in the order of the split, but for those that cannot be read. `on_progress` is called
    after each batch with how many are done, `which` before it is yielded with the places of its examples.
    """
    done = 0
    mesh = meshes.make("any", 1)
    size = _filling(batch_size, mesh)
    params = jax.device_put(params, meshes.shardings(params, mesh))
    program = jax.jit(lambda params, image_bhwc: forward(params, normalise(image_bhwc, preprocess)))
    batches = loader.EvalBatches(source, preprocess, image_size, size, list(range(size)))
    for step, batch in enumerate(loader.iterate(batches, cfg)):
        with jax.set_mesh(mesh):
            made = program(params, jax.device_put(batch.image, meshes.batch_sharding(mesh)))
        real = batch.weight > 0
        which(step * size + np.flatnonzero(real))
        yield batch.label[real], jax.tree.map(lambda x, real=real: np.asarray(x)[real], made)
        on_progress(done := min(done + size, source.size))


def _filling(batch_size: int, mesh: Mesh) -> int:
    """`batch_size` rounded up to fill the devices."""
    return math.ceil(batch_size / mesh.size) * mesh.size


def want_examples(count: float) -> None:
    """Raise UserError if none of a split could be read: nothing can be said of none."""
    if not count:
        raise UserError("no example of the evaluation split can be read: check its files, or data.eval_split")


def summarise(loss: float, top5: float, hits_c: np.ndarray, examples_c: np.ndarray) -> dict[str, float]:
    """Metrics of sums over a split: {"examples", "top1", "top5", "macro", "majority", "worst", "loss", ...}.

    "macro" is the mean of the accuracies of the classes that have examples, "worst" the least of them, that
    of the label "worst_class"; "majority" is the top-1 of always naming the most frequent class. Of at most
    five classes there is no "top5": it would be 1. Raises UserError if there are no examples.
    """
    hits_c, examples_c = np.asarray(hits_c, np.float64), np.asarray(examples_c, np.float64)
    examples = float(examples_c.sum())
    want_examples(examples)
    accuracy_c = hits_c / np.maximum(examples_c, 1)
    worst = int(np.where(examples_c > 0, accuracy_c, np.inf).argmin())
    among_five = {"top5": float(top5) / examples} if len(examples_c) > BEST else {}
    return {
        "examples": int(examples),
        "top1": float(hits_c.sum()) / examples,
        **among_five,
        "macro": float(accuracy_c[examples_c > 0].mean()),
        "majority": float(examples_c.max()) / examples,
        "worst": float(accuracy_c[worst]),
        "worst_class": worst,
        "loss": float(loss) / examples,
    }


def score(metrics: Mapping[str, float], name: str) -> float:
    """The metric of that name, negative where less of it is better."""
    return SIGN[name] * metrics[name]


def format_metrics(metrics: Mapping[str, float], class_names: Sequence[str]) -> str:
    """On one line: what there is of `summarise`, which older runs did not store whole."""
    if "map" in metrics:
        worst = int(metrics["worst_class"])
        return (
            f"mean average precision {metrics['map']:.2%}, worst {class_name(class_names, worst)} "
            f"{metrics['worst']:.2%}, F1 micro {metrics['f1_micro']:.2%}, macro {metrics['f1_macro']:.2%}, "
            f"loss {metrics['loss']:.4f} on {metrics['examples']:,} examples"
        )
    parts = [f"top-1 {metrics['top1']:.2%}"]
    parts += [f"top-5 {metrics['top5']:.2%}"] if "top5" in metrics else []
    if "macro" in metrics:
        name = class_name(class_names, int(metrics["worst_class"]))
        parts[0] += f" (majority class {metrics['majority']:.2%})"
        parts.append(f"mean of classes {metrics['macro']:.2%}, worst {name} {metrics['worst']:.2%}")
    return f"{', '.join(parts)}, loss {metrics['loss']:.4f} on {metrics['examples']:,} examples"
