"""Batches whose content is a pure function of (seed, step): killed anywhere, continued anywhere.

Global position p = step * batch_size + row is copy `p % repeats` of example `order(seed, epoch)[rank]`, with
(epoch, rank) = divmod(p // repeats, n); its augmentation is drawn from `(seed, epoch, index, copy)`. A host
makes only its `rows` of the global batch, so the stream is the same for any number of hosts, workers, threads
and devices. With `data.balance` the order is that of balance.py, as much a function of the position.
Dims: b rows of this host, h w pixels, c channels.
"""

import abc
import dataclasses
import functools
import gc
import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from vit_jax.data import balance, transforms
from vit_jax.data.decode import BrokenExample
from vit_jax.data.source import Label, Source
from vit_jax.patches import Native, Patches, Size, cut
from vit_jax.sections import Data, Preprocess

ORDER, AUGMENT = 0, 1  # streams of random numbers that never meet
WORKER_BUFFER = 2  # batches that a worker process makes ahead

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """uint8 images [b, h, w, c], or Patches, labels, float32 weights [b] (0: padding, or a skipped example).

    Labels are int32 [b]; of a source of several an example, uint8 [b, classes] that is 1 at each of them.
    """

    image: np.ndarray | Patches
    label: np.ndarray
    weight: np.ndarray

    def map(self, change: Callable[[Any], Any]) -> "Batch":
        """The same batch of changed arrays."""
        image = self.image
        changed = Patches(*map(change, image)) if isinstance(image, Patches) else change(image)
        return Batch(changed, change(self.label), change(self.weight))


class Made(NamedTuple):
    """A batch and one message for each example in it that could not be read: zeros of weight 0 in its row."""

    batch: Batch
    broken: tuple[str, ...]


class _Batches(abc.ABC):
    """`batches[step]`: rows of a source, each as the subclass makes it."""

    source: Source
    cfg: Any  # Data, or Preprocess
    image_size: Size
    batch_size: int
    rows: Sequence[int]

    def __getitem__(self, step: int) -> Batch:
        """Raises BrokenExample if one of its examples cannot be read."""
        made = self.make(step)
        if made.broken:
            raise BrokenExample(made.broken[0])
        return made.batch

    def make(self, step: int) -> Made:
        """The batch, whatever can be read of it."""
        count, several = len(self.rows), self.source.multi_label
        image = rows_of(self.image_size, count, self.cfg.channels)
        shape, dtype = ((count, len(self.source.class_names)), np.uint8) if several else (count, np.int32)
        label, weight = np.zeros(shape, dtype), np.zeros(count, np.float32)
        broken = []
        for i, row in enumerate(self.rows):
            try:
                image_hwc, label[i] = self._row(step * self.batch_size + int(row))
            except BrokenExample as e:
                broken.append(str(e))
                continue
            if image_hwc is not None:
                put(image, i, image_hwc)
                weight[i] = 1.0
        return Made(Batch(image, label, weight), tuple(broken))

    @abc.abstractmethod
    def _row(self, position: int) -> tuple[np.ndarray | None, Label]:
        """Image and label at a position of the global stream; without an image it is padding."""


@dataclasses.dataclass(frozen=True)
class TrainBatches(_Batches):
    """Endless shuffled batches without seams between epochs; `batches[step]` is one of them."""

    source: Source
    cfg: Data
    image_size: Size
    batch_size: int
    seed: int
    steps: int
    rows: Sequence[int]
    by_class: balance.ByClass | None = dataclasses.field(init=False)  # the order of data.balance

    def __post_init__(self) -> None:
        # Now, and not in each worker: to know the labels may take reading all examples.
        drawn = balance.by_class(self.source, self.seed) if self.cfg.balance else None
        object.__setattr__(self, "by_class", drawn)

    def __len__(self) -> int:
        return self.steps

    def example(self, position: int) -> tuple[int, int, int]:
        """(epoch, index, copy) at a position of the global stream; no two positions have the same.

        With `data.balance` each class has epochs of its own.
        """
        slot, copy = divmod(position, self.cfg.repeats)
        if self.by_class:
            return *self.by_class.example(slot), copy
        epoch, rank = divmod(slot, self.source.size)
        return epoch, int(order(self.seed, epoch, self.source.size)[rank]), copy

    def ids(self, step: int) -> list[int]:
        """Indices into the source of the global batch of a step, in order."""
        first = step * self.batch_size
        return [self.example(position)[1] for position in range(first, first + self.batch_size)]

    def _row(self, position: int) -> tuple[np.ndarray | None, Label]:
        epoch, index, copy = self.example(position)
        picture, label = self.source.get(index)
        rng = augmentation_rng(self.seed, epoch, index, copy)
        return transforms.for_training(picture, self.cfg, self.image_size, rng), label


@dataclasses.dataclass(frozen=True)
class EvalBatches(_Batches):
    """Each example once, in order; the last batch is filled up with zeros of weight 0."""

    source: Source
    cfg: Preprocess
    image_size: Size
    batch_size: int
    rows: Sequence[int]

    def __len__(self) -> int:
        return math.ceil(self.source.size / self.batch_size)

    def _row(self, position: int) -> tuple[np.ndarray | None, Label]:
        if position >= self.source.size:
            return None, 0
        picture, label = self.source.get(position)
        return transforms.for_evaluation(picture, self.cfg, self.image_size), label


def iterate(batches: TrainBatches | EvalBatches, cfg: Data, *, start: int = 0) -> Iterator[Batch]:
    """`batches[start], batches[start + 1], ...`, made ahead by `cfg.workers` processes or threads.

    A generator: `close()` it, or let go of it, and its threads and processes end. Examples that cannot be
    read raise BrokenExample, or with `cfg.on_error=skip` are logged by name, each once, with a running count.
    """
    if start >= len(batches):
        return
    made = _made(batches, cfg, start)
    skipped: set[str] = set()
    try:
        for batch, broken in made:
            if cfg.workers:  # they answer in shared memory, which ends with the array object
                batch = batch.map(np.array)
            for message in broken:
                if cfg.on_error == "error":
                    raise BrokenExample(f"{message}; data.on_error=skip goes on without it")
                if message not in skipped:
                    skipped.add(message)
                    log.warning("skipped %s (%d so far)", message, len(skipped))
            yield batch
    finally:
        made.close()
        if cfg.workers:
            del made
            gc.collect()  # Grain's iterators are cycles that keep the last batches in shared memory


@functools.lru_cache(maxsize=4)  # two epochs at a seam, for two sources
def order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation of `size` examples in `epoch`."""
    return np.random.default_rng((ORDER, seed, epoch)).permutation(size)


class _Random(threading.local):
    """A thread's own generator: to make one takes ten times as long as to set one."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(0)
        self.generator = np.random.Generator(self.bits)


_random = _Random()


def augmentation_rng(seed: int, epoch: int, index: int, copy: int) -> np.random.Generator:
    """What a copy of an example is augmented by, until this thread asks for the next.

    Philox, a function of a key and a counter (doi:10.1145/2063384.2063405): the run has the key, each copy
    of an example its part of the counter.
    """
    state: Any = {  # of arrays, say numpy's types: tuples do, and sooner
        "bit_generator": "Philox",
        "state": {"key": (seed, AUGMENT), "counter": (0, copy, index, epoch)},
        "buffer": (0, 0, 0, 0),
        "buffer_pos": 4,  # all of it is used
        "has_uint32": 0,
        "uinteger": 0,
    }
    _random.bits.state = state
    return _random.generator


@dataclasses.dataclass(frozen=True)
class _Maker:
    """What Grain indexes: `make` instead of `[]`."""

    batches: TrainBatches | EvalBatches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Made:
        return self.batches.make(index)


def _made(batches: TrainBatches | EvalBatches, cfg: Data, start: int) -> grain.DatasetIterator[Made]:
    threads = math.ceil(cfg.threads / cfg.workers) if cfg.workers else cfg.threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    dataset = grain.MapDataset.source(_Maker(batches))[start:].to_iter_dataset(options)
    workers = min(cfg.workers, len(batches) - start)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags when it starts a process
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=WORKER_BUFFER)
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_start_worker)
    return iter(dataset)


def _start_worker(index: int, count: int) -> None:
    """Leave Ctrl-C to the parent, and end with it, also when it is killed: the pipe to it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def rows_of(size: Size, count: int, channels: int) -> np.ndarray | Patches:
    """Room for `count` images, of zeros."""
    if not isinstance(size, Native):
        return np.zeros((count, *size, channels), np.uint8)
    p = size.patch_size
    pixels = np.zeros((count, size.tokens, p, p, channels), np.uint8)
    return Patches(pixels, np.zeros((count, 2), np.int32))


def put(rows: np.ndarray | Patches, i: int, image_hwc: np.ndarray) -> None:
    """Make an image row `i`."""
    if isinstance(rows, Patches):
        p = rows.pixels.shape[2]
        patches = cut(image_hwc, p)
        rows.pixels[i, : len(patches)] = patches
        rows.grid[i] = image_hwc.shape[0] // p, image_hwc.shape[1] // p
    else:
        copy_pixels(rows[i], image_hwc)


def copy_pixels(out_hwc: np.ndarray, image_hwc: np.ndarray) -> None:
    """`out_hwc[...] = image_hwc`, which is six times slower for mirrored images than channel by channel."""
    if image_hwc.flags.c_contiguous:
        out_hwc[...] = image_hwc
    else:
        for channel in range(out_hwc.shape[-1]):
            out_hwc[..., channel] = image_hwc[..., channel]
