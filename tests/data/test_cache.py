"""`data.cache_gib`: the same batches, with each example read once as far as there is room."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, photo
from PIL import Image

from vit_jax import config
from vit_jax.data import cache, loader, sources, transforms
from vit_jax.data.decode import BrokenExample, Encoded
from vit_jax.data.loader import EvalBatches, TrainBatches
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.run import loop
from vit_jax.sections import Data

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")

HW = (12, 16)
EPOCHS = 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A class folder with a file of every kind that is decoded in its own way."""
    image = photo()
    clear = image.convert("RGBA")
    clear.putalpha(image.convert("L"))
    wide = Image.fromarray(np.arange(80 * 96, dtype=np.uint16).reshape(80, 96) * 7)
    files = {
        "colour.jpg": encode(image, "JPEG"),
        "large.jpg": encode(image.resize((480, 400)), "JPEG"),
        "sideways.jpg": encode(
            image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
        ),
        "grey.jpg": encode(image.convert("L"), "JPEG"),
        "print.jpg": encode(image.convert("CMYK"), "JPEG"),
        "colour.png": encode(image, "PNG"),
        "clear.png": encode(clear, "PNG"),
        "wide.png": encode(wide, "PNG"),
        "palette.gif": encode(image.convert("P"), "GIF"),
        "lossy.webp": encode(image, "WEBP"),
    }
    root = tmp_path_factory.mktemp("photos")
    for name, data in files.items():
        path = root / "train" / "photo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def opened(cfg: Data) -> tuple[Source, Source]:
    """The same files as a training and as an evaluation split."""
    source = sources.open_split(cfg, train=True)
    return tuple(cache.keep(source, cfg, HW, train=train) for train in (True, False))


def batches(cfg: Data, train: Source, evaluation: Source) -> list[loader.Batch]:
    """Three epochs of training, then two evaluations."""
    size, rows = 5, range(5)
    steps = EPOCHS * train.size // size
    streams = [TrainBatches(train, cfg, HW, size, 0, steps, rows)]
    streams += [EvalBatches(evaluation, cfg, HW, size, rows)] * 2
    return [b for stream in streams for b in loader.iterate(stream, cfg)]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("augment", "resizer"),
    [("inception", "fast"), ("inception", "exact"), ("window", "close"), ("none", "close")],
)
def test_batches_are_those_without_a_cache(photos, augment, resizer, channels):
    told = {
        "name": "folder",
        "dir": str(photos),
        "augment": augment,
        "resizer": resizer,
        "channels": channels,
    }
    told |= {"erase": 0.5, "threads": 3, "resize": "crop"}
    plain, cached = Data(**told), Data(**told, cache_gib=1)
    want, have = (batches(cfg, *opened(cfg)) for cfg in (plain, cached))
    assert len(have) == len(want) == (EPOCHS + 2) * 2
    for a, b in zip(want, have, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


class Counted(Source):
    """Two PNG files of 8x8 pixels, one JPEG and one broken file, and how often each was read."""

    size, class_names = 4, ("a",)

    def __init__(self) -> None:
        grey = Image.new("L", (8, 8), 90)
        self.pictures = [encode(grey, "PNG"), encode(grey, "PNG"), encode(grey, "JPEG"), b"nothing"]
        self.reads: Counter[int] = Counter()

    def get(self, index: int) -> tuple[Encoded, int]:
        self.reads[index] += 1
        return Encoded(self.pictures[index], f"file {index}"), index

    def kept(self, *, train: bool, room_bytes: int = 2**20, augment: str = "inception") -> Source:
        cfg = Data(channels=1, augment=augment, cache_gib=room_bytes / 2**30)
        return cache.keep(self, cfg, HW, train=train)


@pytest.mark.parametrize(("train", "augment"), [(True, "inception"), (True, "pad"), (False, "inception")])
def test_each_example_is_read_once_and_broken_ones_each_time(train, augment):
    counted = Counted()
    source = counted.kept(train=train, augment=augment)
    random_crops = train and augment == "inception"
    for _ in range(3):
        for index in range(3):
            picture, label = source.get(index)
            assert label == index
            pixels = transforms.Cropped if not random_crops else np.ndarray
            assert type(picture) is (Encoded if random_crops and index == 2 else pixels)
        with pytest.raises(BrokenExample, match="file 3 is not a readable image: it has no known format"):
            source.get(3)
    assert counted.reads == {0: 1, 1: 1, 2: 1, 3: 3}


def test_what_is_held_is_not_changed_by_its_users():
    source = Counted().kept(train=True)
    assert source.get(2)[0] is not source.get(2)[0]  # an `Encoded` keeps what its user decoded
    source.get(0)
    with pytest.raises(ValueError, match="read-only"):
        source.get(0)[0][:] = 0


def test_memory_that_there_is_not_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"data.cache_gib=1000000000.0: there is not so much memory"):
        Counted().kept(train=True, room_bytes=10**9 * 2**30)


def test_what_there_is_no_room_for_is_read_again():
    counted = Counted()
    source = counted.kept(train=True, room_bytes=8 * 8)  # one picture of 8x8 pixels
    for _ in range(3):
        assert [source.get(index)[1] for index in (0, 1, 2)] == [0, 1, 2]
        np.testing.assert_array_equal(source.get(1)[0], np.full((8, 8, 1), 90))
    assert counted.reads == {0: 1, 1: 6, 2: 3}


def test_without_the_option_the_source_is_as_it_was():
    source = sources.digits(train=True)
    assert cache.keep(source, Data(), HW, train=True) is source


def test_a_run_reads_its_files_once(photos, tmp_path, monkeypatch):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    (root / "train" / "another").mkdir()
    shutil.copy(root / "train" / "photo" / "colour.png", root / "train" / "another" / "another.png")
    reads: Counter[str] = Counter()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.update([path.name]) or read(path))
    c = config.default()
    c.model.update(image_size=8, patch_size=4, width=16, depth=1, heads=2, mlp_width=16)
    c.data.update(name="folder", dir=str(root), eval_split="train", threads=0, cache_gib=0.1)
    c.train.update(steps=10, batch_size=8, eval_every=5)
    loop.run(config.parse(c), tmp_path / "run")
    assert set(reads.values()) == {2}  # once for each split
    assert len(reads) == 11
