"""A batch depends on (seed, step) alone; evaluation sees each example once; nothing outlives a run."""

import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vit_jax.data import loader, sources
from vit_jax.data.decode import BrokenExample
from vit_jax.data.loader import Batch, EvalBatches, TrainBatches
from vit_jax.data.source import Source
from vit_jax.sections import Data

FIRST = 1000  # the examples whose order and augmentation is compared
SIZE = 130  # examples, so that 1,000 positions cross seven seams between epochs
slow = pytest.mark.slow  # starting a worker process takes seconds: some of the tests that need one are for CI
DATA = Data(channels=1, threads=0, min_area=0.3, erase=0.5)
HW = (6, 5)


def pictures(count: int = SIZE, channels: int = 1) -> Source:
    """Arrays whose pixels and labels tell which example they are."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(count, 7, 9, channels), dtype=np.uint8)
    return sources.arrays(images, np.arange(count), [str(i) for i in range(count)])


def train_batches(
    batch_size: int, cfg: Data = DATA, *, seed: int = 3, rows=None, source=None
) -> TrainBatches:
    rows = range(batch_size) if rows is None else rows
    return TrainBatches(source or pictures(), cfg, HW, batch_size, seed, -(-FIRST // batch_size), rows)


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def assert_same(a: Batch, b: Batch) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def reference() -> Batch:
    """The first examples of the stream, made one after the other in this thread."""
    return joined(list(loader.iterate(train_batches(50), DATA)))


def test_an_epoch_shows_each_example_once_and_epochs_differ(reference: Batch) -> None:
    epochs = [reference.label[i * SIZE : (i + 1) * SIZE] for i in range(FIRST // SIZE)]
    assert all(sorted(epoch) == list(range(SIZE)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_the_same_example_is_augmented_anew_in_each_epoch(reference: Batch) -> None:
    first, second = (reference.image[reference.label == 7][i] for i in (0, 1))
    assert (first != second).any()


@pytest.mark.parametrize(("workers", "threads"), [(0, 3), pytest.param(1, 2, marks=slow), (2, 2)])
def test_workers_and_threads_change_nothing(reference: Batch, workers: int, threads: int) -> None:
    cfg = Data(channels=1, workers=workers, threads=threads, min_area=0.3, erase=0.5)
    assert_same(joined(list(loader.iterate(train_batches(50, cfg), cfg))), reference)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_make_the_stream_of_one(reference: Batch, hosts: int) -> None:
    rows = np.array_split(np.arange(100), hosts)
    streams = [list(loader.iterate(train_batches(100, rows=r), DATA)) for r in rows]
    assert_same(joined([joined(list(parts)) for parts in zip(*streams, strict=True)]), reference)


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 60), hosts=st.integers(1, 4), cut=st.floats(0, 1), seed=st.integers(0, 2**40),
    repeats=st.integers(1, 3),
)  # fmt: skip
def test_any_hosts_and_any_restart_give_the_same_stream(
    batch_size: int, hosts: int, cut: float, seed: int, repeats: int
) -> None:
    cfg = Data(channels=1, threads=0, min_area=0.3, erase=0.5, repeats=repeats)
    whole = train_batches(batch_size, cfg, seed=seed)
    steps = range(min(len(whole), 4))
    restart = int(cut * (len(whole) - 1))
    parts = [
        train_batches(batch_size, cfg, seed=seed, rows=range(h, batch_size, hosts)) for h in range(hosts)
    ]
    for step in {*steps, restart}:
        shared = whole[step]
        for h, part in enumerate(parts):
            assert_same(part[step], Batch(*(column[h::hosts] for column in shared)))
    assert_same(next(iter(loader.iterate(whole, cfg, start=restart))), whole[restart])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=slow)])
def test_a_restart_inside_an_epoch_continues_with_the_next_example(reference: Batch, workers: int) -> None:
    cfg = Data(channels=1, workers=workers, threads=2, min_area=0.3, erase=0.5)
    rest = joined(list(loader.iterate(train_batches(50, cfg), cfg, start=7)))
    assert_same(rest, Batch(*(column[350:] for column in reference)))


def test_repeated_augmentation_shows_an_example_in_different_crops_side_by_side() -> None:
    cfg = Data(channels=1, threads=0, min_area=0.3, repeats=3)
    batch = train_batches(3 * SIZE, cfg)[0]
    copies = batch.label.reshape(SIZE, 3)
    assert (copies == copies[:, :1]).all()
    assert sorted(copies[:, 0]) == list(range(SIZE))
    assert (batch.image[0] != batch.image[1]).any()


def test_seeds_give_different_orders_and_crops() -> None:
    a, b = train_batches(50, seed=3)[0], train_batches(50, seed=4)[0]
    assert (a.label != b.label).any()


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), hosts=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_evaluation_sees_each_example_once_whatever_the_batch_and_the_devices(
    count: int, batch_size: int, hosts: int
) -> None:
    source = pictures(count)
    seen = []
    for rows in np.array_split(np.arange(batch_size), hosts):
        for batch in loader.iterate(EvalBatches(source, DATA, HW, batch_size, rows), DATA):
            assert not batch.image[batch.weight == 0].any()
            seen += batch.label[batch.weight == 1].tolist()
    assert sorted(seen) == list(range(count))


def test_any_number_of_channels_passes_through() -> None:
    cfg = Data(channels=5, threads=0, flip=True)
    batches = train_batches(8, cfg, source=pictures(20, channels=5))
    assert batches[0].image.shape == (8, *HW, 5)
    source = pictures(20, channels=5)
    unchanged = EvalBatches(source, Data(channels=5), (7, 9), 4, range(4))[0]
    np.testing.assert_array_equal(unchanged.image, np.stack([source.get(i)[0] for i in range(4)]))


BROKEN = ("empty.jpg", "truncated.jpg", "text.jpg", "wrong.png", "zero_size.png")


@pytest.fixture
def twenty_classes(tmp_path: Path) -> Path:
    """Twenty classes of twelve images, and five files that are none."""
    rng = np.random.default_rng(0)
    for c in range(20):
        folder = tmp_path / f"class_{c:02d}"
        folder.mkdir()
        for i in range(12):
            pixels = rng.integers(256, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:02d}.{'jpg' if i % 2 else 'png'}")
    whole = (tmp_path / "class_00" / "01.jpg").read_bytes()
    png = (tmp_path / "class_00" / "00.png").read_bytes()
    contents = (b"", whole[: len(whole) // 2], b"this is not an image\n" * 20, b"GIF89a, or so it says")
    zero_size = png[:16] + bytes(8) + png[24:]
    for i, (name, data) in enumerate(zip(BROKEN, (*contents, zero_size), strict=True)):
        (tmp_path / f"class_{3 * i:02d}" / name).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_skip_trains_on_without_broken_files_and_names_them(
    twenty_classes: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    cfg = Data(name="folder", dir=str(twenty_classes), on_error="skip", workers=workers, threads=1)
    splits = [sources.open_split(cfg, train=train) for train in (True, False)]
    assert sum(s.size for s in splits) == 245
    with caplog.at_level(logging.WARNING):
        epochs = [
            list(loader.iterate(TrainBatches(splits[0], cfg, (8, 8), 32, 0, 16, range(32)), cfg)),
            list(loader.iterate(EvalBatches(splits[1], cfg, (8, 8), 32, range(32)), cfg)),
        ]
    named = {name for name in BROKEN if sum(name in r.getMessage() for r in caplog.records) == 1}
    assert named == set(BROKEN)  # each exactly once, though training passes them twice
    assert "so far)" in caplog.records[-1].getMessage()
    batch = joined(epochs[0])
    assert not batch.image[batch.weight == 0].any()
    assert 0 < (batch.weight == 0).sum() <= 15
    assert joined(epochs[1]).weight.sum() == splits[1].size - sum(
        any(name in f for name in BROKEN) for f in splits[1].images
    )


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=slow)])
def test_error_stops_at_the_first_broken_file(twenty_classes: Path, workers: int) -> None:
    cfg = Data(name="folder", dir=str(twenty_classes), workers=workers, threads=1)
    source = sources.open_split(cfg, train=True)
    batches = TrainBatches(source, cfg, (8, 8), 32, 0, 8, range(32))
    with pytest.raises(BrokenExample, match=rf"({'|'.join(BROKEN)}).*data.on_error=skip") as e:
        list(loader.iterate(batches, cfg))
    assert "\n" not in str(e.value)


SCRIPT = """
import sys
import numpy as np
from vit_jax.sections import Data
from vit_jax.data import loader, sources

if __name__ == "__main__":
    images = np.zeros((64, 8, 8, 1), np.uint8)
    source = sources.arrays(images, np.zeros(64, int), ["zero"])
    cfg = Data(channels=1, workers=2, threads=2)
    batches = loader.TrainBatches(source, cfg, (8, 8), 8, 0, 10**9, range(8))
    for step, batch in enumerate(loader.iterate(batches, cfg)):
        if step == 4:
            print("running", flush=True)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=slow)])
def test_no_worker_outlives_its_parent(tmp_path: Path, kind: signal.Signals) -> None:
    script = tmp_path / "endless.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(loader.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, str(script)], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"running\n"
    if kind == signal.SIGINT:
        os.killpg(process.pid, kind)  # as a terminal does: to everything in the foreground
    else:
        process.kill()
    # Workers inherit the pipe, so it ends when the last of them does.
    process.communicate(timeout=60)


def test_fifty_epochs_take_no_more_memory_than_five() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs /proc")

    def resident_mib() -> float:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    cfg = Data(channels=1, threads=2)
    batches = TrainBatches(pictures(400), cfg, (64, 64), 40, 0, 10 * 50, range(40))
    stream, sizes = loader.iterate(batches, cfg), []
    for step, _ in enumerate(stream):
        if step % 50 == 49:
            sizes.append(resident_mib())
    # An epoch is 1.6 MiB of images: ten epochs' leak would be 16 MiB, allocators wander by a few.
    assert max(sizes[1:]) - sizes[1] < 8


@pytest.mark.parametrize("key", [(0, 0, 0, 0), (7, 3, 129, 2), (2**40, 1, 2, 0)])
def test_augmentation_draws_from_a_generator_of_its_key_whatever_was_drawn_before(key):
    seed, epoch, index, copy = key
    fresh = np.random.Philox(key=(seed, loader.AUGMENT), counter=(0, copy, index, epoch))
    expected = np.random.Generator(fresh).random(5)
    np.testing.assert_array_equal(loader.augmentation_rng(*key).random(5), expected)
    loader.augmentation_rng(1, 2, 3, 4).integers(5, size=3, dtype=np.uint32)  # leaves half a word behind
    np.testing.assert_array_equal(loader.augmentation_rng(*key).random(5), expected)


def test_every_part_of_the_key_of_augmentation_counts():
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert len({loader.augmentation_rng(*key).random() for key in keys}) == len(keys)


def test_threads_draw_side_by_side():
    both = threading.Barrier(2)

    def drawn(index):
        rng = loader.augmentation_rng(0, 0, index, 0)
        both.wait()
        return rng.random(5).tolist()

    with ThreadPoolExecutor(2) as threads:
        got = list(threads.map(drawn, range(2)))
    assert got == [loader.augmentation_rng(0, 0, i, 0).random(5).tolist() for i in range(2)]
