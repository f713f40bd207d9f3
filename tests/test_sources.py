"""Every kind of file becomes what a person would expect to see; every source says what is wrong, by name."""

import io
import itertools
import json
import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from vit_jax.config import Data
from vit_jax.data import decode, loader, sources
from vit_jax.data.decode import BrokenExample, Encoded
from vit_jax.errors import UserError

RED, GREY_LEVEL = (200, 30, 40), 90


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes, channels: int = 3) -> np.ndarray:
    return Encoded(data, "the file").pixels(channels)


def photo(width: int = 96, height: int = 80) -> Image.Image:
    return Image.fromarray(load_sample_images().images[1]).resize((width, height))


# --- what images become ---


def test_transparent_pixels_are_shown_on_white() -> None:
    rgba = Image.new("RGBA", (4, 4), (*RED, 0))
    rgba.paste((*RED, 255), (0, 0, 2, 4))
    rgba.paste((*RED, 128), (0, 0, 1, 4))
    for data in (encode(rgba), encode(rgba, "WEBP", lossless=True, exact=True), encode(rgba, "TIFF")):
        out = pixels(data)
        np.testing.assert_array_equal(out[0, 1], RED)
        np.testing.assert_array_equal(out[0, 3], (255, 255, 255))
        np.testing.assert_allclose(out[0, 0], (np.array(RED) + 255) / 2, atol=1)  # rounding of alpha 128/255
    assert pixels(encode(rgba), 1)[0, 3] == 255
    np.testing.assert_array_equal(pixels(encode(rgba), 4)[0, 3], (*RED, 0))


def test_palettes_and_grey_with_transparency_are_shown_on_white() -> None:
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([*RED, 0, 0, 0])
    palette.putpixel((1, 1), 1)
    out = pixels(encode(palette, "PNG", transparency=1))
    np.testing.assert_array_equal(out[0, 0], RED)
    np.testing.assert_array_equal(out[1, 1], (255, 255, 255))
    grey_alpha = Image.new("LA", (2, 2), (GREY_LEVEL, 0))
    assert (pixels(encode(grey_alpha)) == 255).all()


def test_sixteen_bits_keep_their_high_byte() -> None:
    wide = np.array([[0, 257 * GREY_LEVEL], [65535, 256]], np.uint16)
    for kind in ("PNG", "TIFF"):
        out = pixels(encode(Image.fromarray(wide), kind), 1)[..., 0]
        np.testing.assert_array_equal(out, [[0, GREY_LEVEL], [255, 1]])


def test_cmyk_becomes_the_colour_that_was_printed() -> None:
    out = pixels(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(out.astype(int) - (255, 0, 0)).max() < 8  # JPEG's own loss


def test_grey_files_become_rgb_and_colour_files_grey() -> None:
    grey = Image.new("L", (8, 8), GREY_LEVEL)
    for kind in ("PNG", "JPEG"):
        out = pixels(encode(grey, kind))
        assert out.shape == (8, 8, 3)
        assert (out == GREY_LEVEL).all()
        assert pixels(encode(grey, kind), 1).shape == (8, 8, 1)
    for kind in ("PNG", "JPEG"):
        data = encode(photo(), kind)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        np.testing.assert_array_equal(pixels(data, 1)[..., 0], expected)


def test_one_bit_images_become_black_and_white() -> None:
    assert set(np.unique(pixels(encode(Image.new("1", (3, 3), 1)), 1))) == {255}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(), kind, exif=exif)
    picture = Encoded(data, "photo")
    upright = sources.decode(data, "photo")
    assert picture.size_hw == (upright.height, upright.width)
    assert picture.size_hw == ((80, 96) if orientation < 5 else (96, 80))
    np.testing.assert_array_equal(picture.pixels(3), np.asarray(upright))
    np.testing.assert_array_equal(picture.pixels(3, bottom=20)[:20], np.asarray(upright)[:20])


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 0, 255))]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(pixels(data)[0, 0], RED)


def test_float_images_are_refused_because_their_white_is_unknown() -> None:
    with pytest.raises(BrokenExample, match="the file has 32-bit pixels"):
        pixels(encode(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))


SAMPLINGS = {"444": 0, "422": 1, "420": 2}


@pytest.mark.parametrize(
    ("sampling", "progressive", "restart", "grey"),
    list(itertools.product(SAMPLINGS, [False, True], [0, 3], [False, True])),
)
def test_the_upper_part_of_a_jpeg_is_decoded_as_in_the_whole(
    sampling: str, progressive: bool, restart: int, grey: bool
) -> None:
    image = photo(90, 77).convert("L" if grey else "RGB")
    data = encode(
        image, "JPEG", subsampling=SAMPLINGS[sampling], progressive=progressive, restart_marker_blocks=restart
    )
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for bottom in (1, 8, 16, 17, 40, 63, 76, 77):
        np.testing.assert_array_equal(Encoded(data, "").pixels(3, bottom=bottom)[:bottom], whole[:bottom])
    np.testing.assert_array_equal(Encoded(data, "").pixels(3), whole)
    assert Encoded(data, "").pixels(3, shrink=4).shape == (20, 23, 3)


# --- what is refused ---


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels."""
    body = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    chunk = b"IHDR" + body
    header = b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return header + b"\0\0\0\x0aIDAT" + zlib.compress(b"")


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG that says it has so many pixels."""
    data = bytearray(encode(photo(), "JPEG"))
    header = decode.jpeg_header(bytes(data))
    assert header is not None
    at = header.height_offset
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("make", [png_of, jpeg_of])
@pytest.mark.parametrize("size", [(20_000, 20_000), (65_000, 65_000), (30_000, 4_000)])
def test_decompression_bombs_are_refused_by_name_before_they_are_decoded(make, size: tuple[int, int]) -> None:
    with pytest.raises(BrokenExample, match=r"^big\.img .*pixels.*[0-9]") as e:
        Encoded(make(*size), "big.img").pixels(3)
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_real_jpeg_of_400_megapixels_is_refused_by_name() -> None:
    data = encode(Image.new("L", (20_000, 20_000)), "JPEG")
    with pytest.raises(BrokenExample, match=r"big\.jpg is 20000x20000 pixels"):
        Encoded(data, "big.jpg").pixels(3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files_are_refused_by_name(kind: str) -> None:
    data = encode(photo(), kind)
    for keep in (0.1, 0.5, 0.9):
        with pytest.raises(BrokenExample, match=r"^the file is not a readable image: "):
            pixels(data[: int(len(data) * keep)])


def test_a_jpeg_of_random_bytes_never_ends_in_anything_but_pixels_or_a_name() -> None:
    whole = encode(photo(), "JPEG")
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        for at in rng.integers(2, len(data), size=8):
            data[at] = rng.integers(256)
        try:
            assert pixels(bytes(data)).ndim == 3
        except BrokenExample as e:
            assert str(e).startswith("the file ")


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
    assert pickle.loads(pickle.dumps(train.get.__self__)).files == train.get.__self__.files


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


def test_folders_without_images_say_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no images for training: want one folder a class"):
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
    for file in ("train.bin", "test.bin") if fine else ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        save(tmp_path / file, record * 2)
    cfg = Data(name="cifar", dir=str(tmp_path))
    train, test = (sources.open_split(cfg, train=t) for t in (True, False))
    assert (train.size, test.size, train.class_names) == (2 if fine else 4, 2, ("cat", "dog"))
    out, label = train.get(1)
    assert label == 1
    np.testing.assert_array_equal(out.transpose(2, 0, 1).ravel(), image)
    with pytest.raises(UserError, match="want CIFAR's binary version"):
        sources.open_split(Data(name="cifar", dir=str(tmp_path / "none")), train=True)


def test_hugging_face_parquet_is_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"bytes": encode(photo()), "path": None}, None]
    table = pa.table({"image": rows, "label": [1, 0]})
    described = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    cfg = Data(name="parquet", dir=str(tmp_path))
    source = sources.open_split(cfg, train=True)
    assert source.class_names == ("cat", "dog")
    picture, label = source.get(0)
    assert (picture.size_hw, label) == ((80, 96), 1)
    with pytest.raises(BrokenExample, match="row 1 has no image"):
        source.get(1)
    with pytest.raises(UserError, match=r"has no validation-\*.parquet"):
        sources.open_split(cfg, train=False)


# --- TFDS ---


@pytest.fixture
def tfds_dir(tmp_path: Path) -> Path:
    """Twelve grey images as a prepared TFDS data set in array_record form; record 5 of train is no image."""
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    folder = tmp_path / "shapes" / "1.0.0"
    folder.mkdir(parents=True)
    splits = []
    for split, count in (("train", 12), ("test", 4)):
        writer = array_record_module.ArrayRecordWriter(
            str(folder / f"shapes-{split}.array_record-00000-of-00001"), "group_size:1"
        )
        for i in range(count):
            example = tf_example_pb2.Example()
            image = encode(Image.new("L", (6, 5), 10 * i))
            broken = split == "train" and i == 5
            example.features.feature["image"].bytes_list.value.append(b"no image" if broken else image)
            example.features.feature["label"].int64_list.value.append(i % 2)
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append(
            {"name": split, "shardLengths": [str(count)], "numBytes": "1000", "filepathTemplate": template}
        )
    module = "tensorflow_datasets.core.features"
    features = {
        "image": {
            "pythonClassName": f"{module}.image_feature.Image",
            "image": {"shape": {"dimensions": ["5", "6", "1"]}, "dtype": "uint8"},
        },
        "label": {
            "pythonClassName": f"{module}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "2"},
        },
    }
    tree = {"pythonClassName": f"{module}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    info = {"name": "shapes", "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    (folder / "features.json").write_text(json.dumps(tree))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "label.labels.txt").write_text("even\nodd\n")
    return tmp_path


def test_tfds_array_record_is_read_with_slices_and_names(tfds_dir: Path) -> None:
    cfg = Data(name="shapes", dir=str(tfds_dir), train_split="train[:50%]", channels=1)
    train, test = (sources.open_split(cfg, train=t) for t in (True, False))
    assert (train.size, test.size, train.class_names) == (6, 4, ("even", "odd"))
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
    info = tfds_dir / "shapes" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=r"stored as tfrecord.*convert_format --dataset_dir=\S*shapes/1.0.0 "):
        sources.open_split(Data(name="shapes", dir=str(tfds_dir)), train=True)
    shutil.rmtree(info.parent)
    with pytest.raises(UserError, match="is not prepared in"):
        sources.open_split(Data(name="shapes", dir=str(tfds_dir)), train=True)
