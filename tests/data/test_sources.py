"""Every source gives what it holds, or says what is wrong, by name."""

import contextlib
import dataclasses
import json
import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np
import prepared
import pyarrow.parquet as pq
import pytest
from image_files import encode, photo
from PIL import Image

from vit_jax import config
from vit_jax.data import cache, loader, sources
from vit_jax.data.decode import BrokenExample
from vit_jax.errors import UserError
from vit_jax.sections import Data


def test_a_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    save(tmp_path / "a" / "really_png.jpg", encode(photo()))
    source = sources.folder(Data(name="folder", dir=str(tmp_path), train_split="."), train=True)
    np.testing.assert_array_equal(source.get(0)[0].pixels(3), np.asarray(photo()))


# --- folders ---


def save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_folder_of_classes_is_split_by_name_and_sorted(tmp_path: Path) -> None:
    for name in ("zebra", "ape", ".cache"):
        for i in range(40):
            save(tmp_path / name / f"{i}.{('jpg', 'JPEG', 'Png', 'webp')[i % 4]}", b"")
        save(tmp_path / name / "notes.txt", b"")
    cfg = Data(name="folder", dir=str(tmp_path))
    train, test = (sources.open_split(cfg, train=t) for t in (True, False))
    assert train.class_names == test.class_names == ("ape", "zebra")
    assert train.size + test.size == 80
    assert 1 < test.size < 20
    again = sources.open_split(cfg, train=True)
    np.testing.assert_array_equal(train.labels(), again.labels())
    assert pickle.loads(pickle.dumps(train)).images == train.images


def test_a_split_that_is_not_there_is_no_other_one(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("ape", "bee"):
            for i in range(3):
                save(tmp_path / "split" / split / name / f"{i}.png", b"")
    flat, split = tmp_path / "split" / "train", tmp_path / "split"
    for name, place, fields, train, message in (
        ("folder", split, {"train_split": "trian"}, True, "has no split trian: set data.train_split=train"),
        ("folder", split, {"train_split": "trian"}, False, "has no split trian: set data.train_split=train"),
        ("folder", flat, {"eval_split": "train"}, False, "has no split train for evaluation: set data.eval"),
        ("digits", "", {"eval_split": "train"}, False, "data.name=digits has no split train for evaluation"),
        (
            "cifar",
            flat,
            {"train_split": "train[:50%]"},
            True,
            r"data.name=cifar has no split train\[:50%\]: ",
        ),
    ):
        with pytest.raises(UserError, match=message):
            sources.open_split(Data(name=name, dir=str(place), **fields), train=train)
    named = Data(name="folder", dir=str(flat), eval_split="validation")  # that of the run's own data, maybe
    assert sources.open_split(named, train=False).size == 2


def held_out(folder: Path, rule: str) -> set[str]:
    cfg = config.override_data(
        Data(), ["--data.name=folder", f"--data.dir={folder}", f"--data.held_out={rule}"]
    )
    train, test = (sources.open_split(cfg, train=t) for t in (True, False))
    assert not set(train.images) & set(test.images)
    assert len(train.images) + len(test.images) == sum(1 for _ in folder.rglob("*.png"))
    return set(test.images)


def test_a_folder_keeps_a_tenth_of_each_class_and_added_files_move_few(tmp_path: Path) -> None:
    counts = {"ape": 204, "bee": 36, "cow": 8, "dog": 2, "emu": 1}
    for name, count in counts.items():
        for i in range(count):
            save(tmp_path / name / f"{i}.png", b"")
    before = held_out(tmp_path, "by_class")
    assert [sum(f.startswith(name) for f in before) for name in counts] == [20, 4, 1, 1, 0]
    by_file = held_out(tmp_path, "by_file")
    assert by_file == {
        f"{name}/{i}.png"
        for name, n in counts.items()
        for i in range(n)
        if zlib.crc32(f"{name}/{i}.png".encode()) % 10 == 0
    }
    old = {f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*.png")}
    for i in range(204, 224):
        was = held_out(tmp_path, "by_class")
        save(tmp_path / "ape" / f"{i}.png", b"")
        assert len((was ^ held_out(tmp_path, "by_class")) - {f"ape/{i}.png"}) <= 1
    after = held_out(tmp_path, "by_class")
    assert sum(f.startswith("ape") for f in after) == 22
    assert len((before ^ after) & old) <= 4
    assert held_out(tmp_path, "by_file") & old == by_file


def test_runs_of_before_keep_their_split() -> None:
    tree = config.load_file("configs/quickstart.py").to_dict()
    del tree["data"]["held_out"]
    assert config.parse_stored(tree).data.held_out == "by_class"  # of digits, where it has no meaning
    tree["data"].update(name="folder", dir="photos")
    assert config.parse_stored(tree).data.held_out == "by_file"
    tree["data"]["held_out"] = "by_class"
    assert config.parse_stored(tree).data.held_out == "by_class"


@pytest.mark.parametrize("second", ["val", "test", "validation"])
def test_a_folder_with_splits_keeps_them(tmp_path: Path, second: str) -> None:
    save(tmp_path / "train" / "a" / "deep" / "1.jpg", b"")
    save(tmp_path / "train" / "b" / "1.jpg", b"")
    save(tmp_path / second / "b" / "2.jpg", b"")
    cfg = Data(name="folder", dir=str(tmp_path))
    assert sources.open_split(cfg, train=True).size == 2
    test = sources.open_split(cfg, train=False)
    assert (test.size, test.class_names) == (1, ("a", "b"))
    np.testing.assert_array_equal(test.labels(), [1])


def test_a_class_of_the_evaluation_split_alone_is_refused(tmp_path: Path) -> None:
    for file in ("train/a/1.jpg", "val/a/1.jpg", "val/aa/1.jpg"):
        save(tmp_path / file, b"")
    cfg = Data(name="folder", dir=str(tmp_path))
    assert sources.open_split(cfg, train=True).size == 1
    with pytest.raises(UserError, match=r"val has classes that .*train lacks \(aa\): rename or remove"):
        sources.open_split(cfg, train=False)


def test_what_is_no_data_is_left_out_and_counted(tmp_path: Path) -> None:
    for file in ("cat/1.png", "cat/2.jfif", "cat/3.AVIF", "cat/deep/4.qoi", "dog/1.jp2"):
        save(tmp_path / "train" / file, b"")
    noise = (
        "cat/._1.png",
        "cat/Thumbs.db",
        ".DS_Store",
        "__MACOSX/cat/5.png",
        "dog/@eaDir/1.jpg",
        "cat/x.pdf",
    )
    for file in (*noise, "6.png"):
        save(tmp_path / "train" / file, b"")
    (tmp_path / "train" / "emu" / "deep").mkdir(parents=True)
    save(tmp_path / "val" / "cat" / "1.png", b"")
    (tmp_path / "val" / "fox").mkdir()
    cfg = Data(name="folder", dir=str(tmp_path))
    train, test = (sources.open_split(cfg, train=t) for t in (True, False))
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.images == ["cat/1.png", "cat/2.jfif", "cat/3.AVIF", "cat/deep/4.qoi", "dog/1.jp2"]
    assert train.note() == (
        f"note: {tmp_path}/train: left out files that are no images: 2, hidden files: 4; "
        "images outside class folders: 1; folders without images: emu"
    )
    assert test.note() == f"note: {tmp_path}/val: left out folders without images: fox"
    assert (
        cache.keep(train, dataclasses.replace(cfg, cache_gib=1e-6), (8, 8), train=True).note() == train.note()
    )
    clean = Data(name="folder", dir=str(tmp_path / "train"))
    shutil.rmtree(tmp_path / "train" / "emu")
    for file in (*noise, "6.png"):
        (tmp_path / "train" / file).unlink()
    shutil.rmtree(tmp_path / "train" / "__MACOSX")
    assert sources.open_split(clean, train=True).note() == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # formats that Pillow will give up
def test_every_kind_of_file_that_pillow_writes_and_reads_is_an_image(tmp_path: Path) -> None:
    written = []
    for suffix, kind in sorted(Image.registered_extensions().items()):
        if kind in Image.SAVE:
            with contextlib.suppress(OSError, ValueError):  # modes and sizes that a format does not have
                photo(32, 32).save(path := tmp_path / f"x{suffix}", kind)
                written.append(path)
    assert len(written) > 30
    read, _ = sources.images_below(tmp_path)
    for path in written:
        try:
            sources.read_image(path)
        except UserError:
            assert path.name not in read
        else:
            assert (path.name in read) or path.suffix in (".eps", ".ps")  # where Ghostscript is installed


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "1.png", b"")
    save(tmp_path / "photos" / "cat" / "2.png", b"")
    (tmp_path / "photos" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "cat" / "back").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere")
    source = sources.open_split(
        Data(name="folder", dir=str(tmp_path / "photos"), train_split="."), train=True
    )
    assert source.images == ["cat/2.png", "cat/more/1.png", "dog/1.png"]


def test_folders_without_images_say_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no images for training: want one folder per class"):
        sources.open_split(Data(name="folder", dir=str(tmp_path)), train=True)
    with pytest.raises(UserError, match="is not a folder"):
        sources.open_split(Data(name="folder", dir=str(tmp_path / "none")), train=True)


# --- arrays, CIFAR, parquet ---


def test_arrays_may_have_any_number_of_channels() -> None:
    source = sources.arrays(np.zeros((3, 4, 5, 7), np.uint8), [0, 1, 0], ["a", "b"])
    assert source.get(1)[0].shape == (4, 5, 7)
    assert sources.arrays(np.zeros((3, 4, 5), np.uint8), [0, 1, 0], ["a", "b"]).get(0)[0].shape == (4, 5, 1)
    with pytest.raises(UserError, match="float64 images of shape"):
        sources.arrays(np.zeros((3, 4, 5)), [0, 1, 0], ["a"])
    with pytest.raises(UserError, match=r"data.channels=3, but the images have 7: set data.channels=7"):
        loader.EvalBatches(source, Data(), (4, 5), 1, [0])[0]


@pytest.mark.parametrize("fine", [False, True])
def test_cifar_binary_files_are_read(tmp_path: Path, fine: bool) -> None:
    image = np.arange(3072, dtype=np.int64).astype(np.uint8)
    record = bytes([9, 1] if fine else [1]) + image.tobytes()
    names = "fine_label_names.txt" if fine else "batches.meta.txt"
    save(tmp_path / names, b"cat\ndog\n")
    for file in (
        ("train.bin", "test.bin") if fine else ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin")
    ):
        save(tmp_path / file, record * 2)
    cfg = Data(name="cifar", dir=str(tmp_path))
    train, test = (sources.open_split(cfg, train=t) for t in (True, False))
    assert (train.size, test.size, train.class_names) == (2 if fine else 4, 2, ("cat", "dog"))
    assert {Path(f.path).name for f in test.files()} == {names, "test.bin" if fine else "test_batch.bin"}
    out, label = train.get(1)
    assert label == 1
    np.testing.assert_array_equal(out.transpose(2, 0, 1).ravel(), image)
    with pytest.raises(UserError, match="want CIFAR's binary version"):
        sources.open_split(Data(name="cifar", dir=str(tmp_path / "none")), train=True)


def test_hugging_face_parquet_is_read(tmp_path: Path) -> None:
    prepared.parquet(tmp_path)
    cfg = Data(name="parquet", dir=str(tmp_path))
    source = sources.open_split(cfg, train=True)
    assert source.class_names == ("cat", "dog")
    assert [Path(f.path).name for f in source.files()] == ["train-00000-of-00001.parquet"]
    picture, label = source.get(0)
    assert (picture.size_hw, label) == ((80, 96), 1)
    with pytest.raises(BrokenExample, match="row 1 has no image"):
        source.get(1)
    with pytest.raises(UserError, match=r"has no validation-\*.parquet"):
        sources.open_split(cfg, train=False)


def test_a_split_without_examples_is_refused(tmp_path: Path) -> None:
    prepared.parquet(tmp_path)
    (written,) = tmp_path.rglob("train-*.parquet")
    empty = pq.read_table(written).slice(0, 0)
    pq.write_table(empty, written.with_name("validation-00000-of-00001.parquet"))
    with pytest.raises(UserError, match=r"data.eval_split of data.name=parquet has no examples"):
        sources.open_split(Data(name="parquet", dir=str(tmp_path)), train=False)


# --- TFDS ---


@pytest.fixture
def tfds_dir(tmp_path: Path) -> Path:
    prepared.tfds(tmp_path)
    return tmp_path


def test_tfds_array_record_is_read_with_slices_and_names(tfds_dir: Path) -> None:
    cfg = Data(name="shapes", dir=str(tfds_dir), train_split="train[:50%]", channels=1)
    train, test = (sources.open_split(cfg, train=t) for t in (True, False))
    assert (train.size, test.size, train.class_names) == (6, 4, ("even", "odd"))
    listed = [Path(f.path).name for f in train.files()]
    assert len(listed) == 5
    assert {"dataset_info.json", "shapes-train.array_record-00000-of-00001"} < set(listed)
    picture, label = test.get(3)
    assert label == 1
    assert (picture.pixels(1) == 30).all()


def test_one_unreadable_record_is_skipped_or_stops_by_name(
    tfds_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = Data(name="shapes", dir=str(tfds_dir), channels=1, on_error="skip", threads=1)
    source = sources.open_split(cfg, train=True)
    batches = loader.EvalBatches(source, cfg, (5, 6), 4, range(4))
    weights = np.concatenate([batch.weight for batch in loader.iterate(batches, cfg)])
    np.testing.assert_array_equal(np.flatnonzero(weights == 0), [5])
    assert "skipped shapes train record 5 is not a readable image" in caplog.text
    with pytest.raises(BrokenExample, match="shapes train record 5 "):
        list(loader.iterate(batches, Data(name="shapes", channels=1, threads=1)))


def test_a_record_whose_bytes_rotted_is_broken_by_name(tfds_dir: Path) -> None:
    shard = next((tfds_dir / "shapes").rglob("*test.array_record*"))
    data = bytearray(shard.read_bytes())
    at = data.rindex(b"IHDR")
    data[at : at + 4] = b"ROT!"
    shard.write_bytes(bytes(data))
    source = sources.open_split(Data(name="shapes", dir=str(tfds_dir)), train=False)
    broken = []
    for i in range(source.size):
        try:
            source.get(i)[0].pixels(1)
        except BrokenExample as e:
            broken.append(str(e))
    assert len(broken) == 1
    assert broken[0].startswith("shapes test record ")


def test_tfds_says_how_to_prepare_what_is_missing_or_stored_as_tfrecord(tfds_dir: Path) -> None:
    with pytest.raises(UserError, match="tfds build mnist --file_format=array_record --data_dir="):
        sources.open_split(Data(name="mnist", dir=str(tfds_dir)), train=True)
    with pytest.raises(UserError, match="shapes has no split validation: it has "):
        sources.open_split(Data(name="shapes", dir=str(tfds_dir), eval_split="validation"), train=False)
    with pytest.raises(UserError, match="is not a data set"):
        sources.open_split(Data(name="no such thing!", dir=str(tfds_dir)), train=True)
    features = tfds_dir / "shapes" / "1.0.0" / "features.json"
    known = features.read_text()
    tree = json.loads(known)
    text = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
    tree["featuresDict"]["features"]["label"] = text
    features.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="shapes has no ClassLabel called label: it has image, label"):
        sources.open_split(Data(name="shapes", dir=str(tfds_dir)), train=True)
    features.write_text(known)
    info = tfds_dir / "shapes" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=r"stored as tfrecord.*convert_format --dataset_dir=\S*shapes/1.0.0 "):
        sources.open_split(Data(name="shapes", dir=str(tfds_dir)), train=True)
    shutil.rmtree(info.parent)
    with pytest.raises(UserError, match="is not prepared in"):
        sources.open_split(Data(name="shapes", dir=str(tfds_dir)), train=True)
