"""Metrics over a whole split, each example counted exactly once."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax.data import loader
from vit_jax.data.source import Source
from vit_jax.sections import Data, Preprocess, Spec
from vit_jax.training import mesh as meshes
from vit_jax.training.step import eval_step, normalise, zero_sums


class Evaluator:
    """A compiled evaluation step over global batches of `batch_size`, rounded up to fill the devices."""

    def __init__(self, model: nn.Module, spec: Spec, mesh: Mesh, batch_size: int) -> None:
        step = functools.partial(eval_step, model=model, preprocess=spec.preprocess)
        everywhere = meshes.everywhere(mesh)
        self._zero = jax.jit(zero_sums, out_shardings=everywhere)
        self._add = jax.jit(
            lambda sums, params, batch: jax.tree.map(lambda a, b: a + b, sums, step(params, batch)),
            out_shardings=everywhere,
        )
        self._spec, self._mesh = spec, mesh
        self._batch_size = _filling(batch_size, mesh)

    def compile(self, params: Any) -> jax.stages.Compiled:
        """What the first call would compile; `params` are arrays, or their shapes and layout."""
        batch = meshes.batch_like(
            self._batch_size, self._spec.model.image_hw, self._spec.preprocess.channels, self._mesh
        )
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.everywhere(self._mesh))
        self._zero.lower().compile()
        sums = jax.tree.map(place, jax.eval_shape(self._zero))
        return self._add.lower(sums, params, batch).compile()

    def __call__(self, params: Any, source: Source, cfg: Data) -> dict[str, float]:
        """{"examples", "top1", "top5" (fractions), "loss" (mean)} of `source`, read as `cfg` says."""
        rows = meshes.host_rows(self._batch_size, self._mesh)
        batches = loader.EvalBatches(
            source, self._spec.preprocess, self._spec.model.image_hw, self._batch_size, rows
        )
        sums = self._zero()
        for batch in loader.iterate(batches, cfg):
            sums = self._add(sums, params, meshes.to_devices(batch, self._batch_size, self._mesh))
        loss, top1, top5, weight = map(float, jax.device_get(sums))
        return {"examples": int(weight), "top1": top1 / weight, "top5": top5 / weight, "loss": loss / weight}


def walk(
    forward: Callable[[Any, jax.Array], Any],
    params: Any,
    source: Source,
    cfg: Data,
    *,
    preprocess: Preprocess,
    image_hw: tuple[int, int],
    batch_size: int,
) -> Iterator[tuple[np.ndarray, Any]]:
    """(int32 labels [b], `forward(params, image_bhwc)` as numpy) of each batch, on all of our devices.

    `forward` is compiled, gives arrays with a row an example, and sees normalised images. Each example comes
    once, in the order of the split, but for those that cannot be read.
    """
    mesh = meshes.make("any", 1)
    size = _filling(batch_size, mesh)
    params = jax.device_put(params, meshes.shardings(params, mesh))
    program = jax.jit(lambda params, image_bhwc: forward(params, normalise(image_bhwc, preprocess)))
    batches = loader.EvalBatches(source, preprocess, image_hw, size, list(range(size)))
    for batch in loader.iterate(batches, cfg):
        with jax.set_mesh(mesh):
            made = program(params, jax.device_put(batch.image, meshes.batch_sharding(mesh)))
        real = batch.weight > 0
        yield batch.label[real], jax.tree.map(lambda x, real=real: np.asarray(x)[real], made)


def _filling(batch_size: int, mesh: Mesh) -> int:
    """`batch_size` rounded up to fill the devices."""
    return math.ceil(batch_size / mesh.size) * mesh.size


def format_metrics(metrics: dict[str, float]) -> str:
    """Such as `top-1 98.61%, top-5 100.00%, loss 0.0567 on 359 examples`."""
    shares = f"top-1 {metrics['top1']:.2%}, top-5 {metrics['top5']:.2%}"
    return f"{shares}, loss {metrics['loss']:.4f} on {metrics['examples']:,} examples"
