"""Examples read from a bucket: those of the same files on this machine."""

import dataclasses
import itertools
import shutil

import numpy as np
import prepared
import pytest
from image_files import encode, photo

from vit_jax import paths, staging
from vit_jax.data import sources
from vit_jax.data.decode import BrokenExample
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.sections import Data


def put(folder, address):
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        paths.upload(file, address / file.relative_to(folder).as_posix())


def examples(source: Source):
    found = [source.get(i) for i in range(source.size)]
    return [(picture if isinstance(picture, np.ndarray) else picture.data, label) for picture, label in found]


def same(there: Source, here: Source):
    assert there.class_names == here.class_names
    for (one, its), (other, ours) in zip(examples(there), examples(here), strict=True):
        np.testing.assert_array_equal(one, other)
        assert its == ours


@pytest.fixture
def address(gs, tmp_path):
    return paths.of(f"gs://bkt/{tmp_path.name}")


@pytest.fixture
def photos(tmp_path):
    """Two splits of two classes, one with a folder in it."""
    root = tmp_path / "photos"
    for i, place in enumerate(("train/cat", "train/dog/small", "train/dog", "val/cat", "val/dog")):
        (root / place).mkdir(parents=True, exist_ok=True)
        for j in range(3):
            (root / place / f"{j}.jpg").write_bytes(encode(photo(24 + 5 * i + j, 32)))
    return root


def folder(root, **changes):
    return sources.open_splits(Data(name="folder", dir=str(root), **changes))


def test_a_folder_of_images(photos, address):
    put(photos, address)
    there, here = folder(address), folder(photos)
    same(there.train, here.train)
    same(there.eval, here.eval)
    assert len(there.train.files()) == len(here.train.files())


def tabled(root, **changes):
    return sources.open_splits(Data(name="table", dir=str(root), **changes))


def write_tables(photos, *, more=0):
    """train.csv and val.csv of the images below `photos`, and of `more` copies of one of them."""
    for j in range(more):
        shutil.copy(photos / "train/cat/0.jpg", photos / f"train/cat/more{j}.jpg")
    for split in ("train", "val"):
        files = sorted((photos / split).rglob("*.jpg"))
        rows = [f"{f.relative_to(photos).as_posix()},{f.relative_to(photos / split).parts[0]}" for f in files]
        (photos / f"{split}.csv").write_text("\n".join(["path,label", *rows]))


def test_a_table_of_images_costs_no_request_an_image(photos, address, gs):
    def requests():
        put(photos, address)
        gs.begin()
        there = tabled(address)
        listed = there.train.files()
        count = sum(gs.requests.values())
        same(there.train, tabled(photos).train)
        same(there.eval, tabled(photos).eval)
        assert len(listed) == len(tabled(photos).train.files()) == there.train.size + 1
        return count

    write_tables(photos)
    few = requests()
    write_tables(photos, more=20)
    assert abs(requests() - few) <= 2  # of 20 images more; a slow answer may be asked for again
    (photos / "train.csv").write_text("path,label\ntrain/cat/0.jpg,cat\nnone.jpg,dog\n")
    put(photos, address)
    with pytest.raises(
        UserError, match=r"train.csv: 1 of 2 images are not there, the first gs://\S+/none.jpg"
    ):
        tabled(address)


def test_a_saved_data_set(photos, address, tmp_path):
    images = [f.read_bytes() for f in sorted(photos.rglob("*.jpg"))]
    prepared.saved_to_disk(tmp_path / "saved", images, [i % 2 for i in range(len(images))], ("cat", "dog"))
    put(tmp_path / "saved", address)
    there, here = (sources.open_splits(Data(name="arrow", dir=str(d))) for d in (address, tmp_path / "saved"))
    same(there.train, here.train)
    same(there.eval, here.eval)


def test_listing_costs_no_request_an_image(photos, address, gs):
    put(photos, address)
    gs.begin()
    few = sum((folder(address), gs.requests)[1].values())
    for j in range(20):
        shutil.copy(photos / "train/cat/0.jpg", photos / f"train/cat/more{j}.jpg")
    put(photos, address)
    gs.begin()
    folder(address)
    assert sum(gs.requests.values()) == few


def test_an_image_that_is_gone_is_a_broken_example_and_a_busy_bucket_is_waited_for(photos, address, gs):
    put(photos, address)
    there = folder(address).train
    (address / "train" / there.images[0].partition("/")[0] / "0.jpg").unlink()
    with pytest.raises(BrokenExample, match=r"0\.jpg cannot be read: No such file"):
        there.get(0)
    count = itertools.count(1)
    gs.fault = lambda method, path: 503 if next(count) == 1 else None
    assert there.get(1)[1] == 0


def test_a_bucket_that_refuses_is_no_broken_example(photos, address, gs):
    put(photos, address)
    there = folder(address).train
    gs.fault = lambda method, path: 403
    with pytest.raises(UserError, match="403 Forbidden"):
        there.get(0)
    with pytest.raises(UserError, match="403 Forbidden"):
        folder(address)


def test_a_folder_that_is_not_there(address):
    with pytest.raises(UserError, match=f"data.dir={address} is not a folder"):
        folder(address)


def test_cifar(address, tmp_path):
    prepared.cifar10(tmp_path)
    put(tmp_path, address)
    there, here = (sources.open_splits(Data(name="cifar", dir=str(root))) for root in (address, tmp_path))
    same(there.train, here.train)
    same(there.eval, here.eval)


def test_parquet(address, tmp_path):
    prepared.parquet(tmp_path)
    put(tmp_path, address)
    there, here = (
        sources.open_split(Data(name="parquet", dir=str(root)), train=True) for root in (address, tmp_path)
    )
    assert (there.get(0)[0].data, there.class_names) == (here.get(0)[0].data, here.class_names)
    assert [(f.path.rpartition("/")[2], f.bytes) for f in there.files()] == [
        (f.path.rpartition("/")[2], f.bytes) for f in here.files()
    ]


def test_a_tfds_data_set_is_copied_once_and_gives_the_same_examples(address, tmp_path, monkeypatch):
    prepared.tfds(tmp_path / "here")
    put(tmp_path / "here", address)
    stage = tmp_path / "stage"
    here = Data(name="shapes", dir=str(tmp_path / "here"))
    there = dataclasses.replace(here, dir=str(address), stage_dir=str(stage))
    same(sources.open_split(there, train=True), sources.open_split(here, train=True))
    (shard,) = stage.rglob("*-train.*")
    assert not list(stage.rglob("*-test.*"))
    before = shard.stat().st_mtime_ns
    monkeypatch.setenv("TFDS_DATA_DIR", str(address))
    same(
        sources.open_split(dataclasses.replace(there, dir="", train_split="train[:50%]"), train=True),
        sources.open_split(dataclasses.replace(here, train_split="train[:50%]"), train=True),
    )
    assert shard.stat().st_mtime_ns == before
    same(sources.open_split(there, train=False), sources.open_split(here, train=False))
    with pytest.raises(UserError, match=f"data set other is not prepared in {address}"):
        sources.open_split(dataclasses.replace(there, name="other"), train=True)


def test_a_copy_that_was_cut_short_goes_on_and_no_room_is_told(photos, address, tmp_path, monkeypatch):
    put(photos, address)
    files, to = paths.files_below(address), tmp_path / "to"
    staging.bring(files[:2], address, to)
    kept = {p: p.stat().st_mtime_ns for p in to.rglob("*.jpg")}
    cut = next(iter(kept))
    cut.write_bytes(cut.read_bytes()[:-1])
    staging.bring(files, address, to)
    assert {p.relative_to(to).as_posix(): p.read_bytes() for p in to.rglob("*.jpg")} == {
        p.relative_to(photos).as_posix(): p.read_bytes() for p in photos.rglob("*.jpg")
    }
    assert [p.stat().st_mtime_ns == t for p, t in kept.items()] == [p != cut for p in kept]
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: type("", (), {"free": 10}))
    with pytest.raises(UserError, match=r"wants 0.0 GB in .*, which has room for 0.0 GB"):
        staging.bring(files, address, tmp_path / "other")
