"""`data.balance` draws classes evenly in an order that is a function of the position alone."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_jax import config
from vit_jax.data import balance, loader, sources
from vit_jax.data.decode import BrokenExample
from vit_jax.data.loader import Batch, TrainBatches
from vit_jax.data.source import Source, read_labels
from vit_jax.errors import UserError
from vit_jax.sections import Data

HW = (6, 5)
DATA = Data(channels=1, threads=0, min_area=0.3, erase=0.5, balance=True)
slow = pytest.mark.slow  # starting a worker process takes seconds


def pictures(counts):
    """Arrays of `counts[c]` examples of each class, all of other pixels; classes are mixed."""
    label = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.random.default_rng(0).integers(256, size=(len(label), 7, 9, 1), dtype=np.uint8)
    return sources.arrays(images, label, [str(i) for i in range(len(counts))])


def batches_of(source, batch_size, cfg=DATA, *, seed=3, rows=None, steps=40):
    return TrainBatches(source, cfg, HW, batch_size, seed, steps, range(batch_size) if rows is None else rows)


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any), batch_size=st.integers(1, 20),
    hosts=st.integers(1, 4), restart=st.integers(0, 39), seed=st.integers(0, 2**40),
    repeats=st.integers(1, 3),
)  # fmt: skip
def test_any_hosts_and_any_restart_give_the_same_balanced_stream(
    counts, batch_size, hosts, restart, seed, repeats
):
    cfg, source = dataclasses.replace(DATA, repeats=repeats), pictures(counts)
    whole = batches_of(source, batch_size, cfg, seed=seed)
    for h in range(hosts):
        part = batches_of(source, batch_size, cfg, seed=seed, rows=range(h, batch_size, hosts))
        for step in (restart, 0, restart):  # in any order
            assert_same(part[step], Batch(*(column[h::hosts] for column in whole[step])))
    assert_same(next(iter(loader.iterate(whole, cfg, start=restart))), whole[restart])


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 2**40))
def test_classes_come_evenly_and_examples_of_one_only_again_when_all_were_there(counts, seed):
    source = pictures(counts)
    label_n, k = source.labels(), len(counts)
    drawn = balance.by_class(source, seed)
    stream = [drawn.example(slot) for slot in range(3 * max(counts) * k)]
    labels = [label_n[index] for _, index in stream]
    for start in range(0, len(stream), k):
        assert sorted(labels[start : start + k]) == list(range(k))
    for label, count in enumerate(counts):
        mine = [entry for entry, at in zip(stream, labels, strict=True) if at == label]
        for turn in range(len(mine) // count):
            passed = mine[turn * count : (turn + 1) * count]
            assert [t for t, _ in passed] == [turn] * count
            assert sorted(index for _, index in passed) == np.flatnonzero(label_n == label).tolist()
    assert len(set(stream)) == len(stream)  # so that no example is ever augmented twice in the same way
    n = source.size  # of an epoch
    for start in range(0, len(stream) - n, n):
        times = Counter(labels[start : start + n])
        assert max(times.values()) - min(times[label] for label in range(k)) <= 2


def test_passes_and_seeds_differ_and_a_rare_class_is_augmented_anew_within_an_epoch():
    source = pictures((2, 40))
    batches = batches_of(source, source.size)
    rare = np.flatnonzero(source.labels() == 0)
    orders = [batches.by_class._order(1, turn).tolist() for turn in range(3)]
    assert len(set(map(tuple, orders))) == 3
    assert orders != [batches_of(source, 8, seed=4).by_class._order(1, turn).tolist() for turn in range(3)]
    first = batches[0]
    assert (first.label == 0).sum() == 21
    again = [i for i, index in enumerate(batches.ids(0)) if index == rare[0]]
    assert len({first.image[i].tobytes() for i in again}) == len(again) >= 10


@pytest.mark.parametrize(("workers", "threads"), [(0, 3), pytest.param(2, 2, marks=slow)])
def test_workers_and_threads_change_nothing(workers, threads):
    source = pictures((3, 17, 5))
    cfg = dataclasses.replace(DATA, workers=workers, threads=threads)
    wanted = batches_of(source, 16)
    made = list(loader.iterate(batches_of(source, 16, cfg), cfg, start=3))
    assert len(made) == 37
    for step, batch in enumerate(made, start=3):
        assert_same(batch, wanted[step])


class Unlabelled(Source):
    """A source that tells labels with its examples alone, of which some cannot be read."""

    class_names = ("a", "b")
    size = 600

    def get(self, index):
        if index % 7 == 0:
            raise BrokenExample(f"{index} is broken")
        return np.zeros((4, 4, 1), np.uint8), int(index % 10 == 1)


def test_labels_that_only_examples_tell_are_read_and_what_is_broken_is_never_drawn():
    label_n = read_labels(Unlabelled())
    assert label_n.tolist() == [-1 if i % 7 == 0 else int(i % 10 == 1) for i in range(600)]
    drawn = balance.by_class(Unlabelled(), 0)
    assert all(drawn.example(slot)[1] % 7 for slot in range(1000))

    class Broken(Unlabelled):
        def get(self, index):
            raise BrokenExample("no")

    with pytest.raises(UserError, match=r"data.balance=true: no example can be read"):
        balance.by_class(Broken(), 0)


def test_rare_classes_are_made_up_for_once():
    c = config.default()
    c.train.steps, c.data.balance, c.loss.class_weights = 1, True, "balanced"
    with pytest.raises(UserError, match="would make up for rare classes twice: use one"):
        config.parse(c)
    c.loss.class_weights = (1.0, 2.0)
    assert config.parse(c).data.balance


def test_labels_of_several_classes_are_not_balanced():
    label = np.eye(3, dtype=np.uint8)[[0, 1, 2, 0]]
    source = sources.arrays(np.zeros((4, 8, 8), np.uint8), label, ["a", "b", "c"])
    with pytest.raises(UserError, match=r"data.balance=True counts images by their one class: leave it out"):
        batches_of(source, 2)
