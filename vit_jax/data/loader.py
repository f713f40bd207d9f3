"""Batches whose content is a pure function of (seed, step): killed anywhere, continued anywhere.

Global position p = step * batch_size + row is example `order(seed, p // n)[p % n]`, its augmentation drawn
from `(seed, epoch, index)`. A host makes only its `rows` of the global batch, so the stream is the same for
any number of hosts, threads and devices. Dims: b rows of this host, h w pixels, c channels.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from vit_jax.config import Data, Preprocess
from vit_jax.data import transforms
from vit_jax.data.sources import Source

ORDER, AUGMENT = 0, 1  # streams of random numbers that never meet


class Batch(NamedTuple):
    """uint8 images [b, h, w, c], int32 labels [b], float32 weights [b] (0: padding)."""

    image: np.ndarray
    label: np.ndarray
    weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Endless shuffled batches without seams between epochs; `batches[step]` is one of them."""

    source: Source
    cfg: Data
    image_hw: tuple[int, int]
    batch_size: int
    seed: int
    steps: int
    rows: Sequence[int]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Batch:
        return _collate([self._example(index * self.batch_size + int(row)) for row in self.rows])

    def _example(self, position: int) -> tuple[np.ndarray, int, float]:
        epoch, rank = divmod(position, self.source.size)
        index = int(order(self.seed, epoch, self.source.size)[rank])
        image, label = self.source.get(index)
        rng = np.random.default_rng((AUGMENT, self.seed, epoch, index))
        return transforms.for_training(image, self.cfg, self.image_hw, rng), label, 1.0


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Each example once, in order; the last batch is filled up with zeros of weight 0."""

    source: Source
    cfg: Preprocess
    image_hw: tuple[int, int]
    batch_size: int
    rows: Sequence[int]

    def __len__(self) -> int:
        return math.ceil(self.source.size / self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        return _collate([self._example(index * self.batch_size + int(row)) for row in self.rows])

    def _example(self, position: int) -> tuple[np.ndarray, int, float]:
        if position >= self.source.size:
            return np.zeros((*self.image_hw, self.cfg.channels), np.uint8), 0, 0.0
        image, label = self.source.get(position)
        return transforms.for_evaluation(image, self.cfg, self.image_hw), label, 1.0


def iterate(batches: TrainBatches | EvalBatches, cfg: Data, *, start: int = 0) -> Iterator[Batch]:
    """`batches[start], batches[start + 1], ...`, made ahead by `cfg.threads` threads."""
    options = grain.ReadOptions(num_threads=cfg.threads, prefetch_buffer_size=cfg.threads)
    return iter(grain.MapDataset.source(batches)[start:].to_iter_dataset(options))


@functools.lru_cache(maxsize=4)  # two epochs at a seam, for two sources
def order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation of `size` examples in `epoch`."""
    return np.random.default_rng((ORDER, seed, epoch)).permutation(size)


def _collate(examples: list[tuple[np.ndarray, int, float]]) -> Batch:
    images, labels, weights = zip(*examples, strict=True)
    return Batch(np.stack(images), np.array(labels, np.int32), np.array(weights, np.float32))
