"""`python -m vit_jax.cli.embed`: features of files, folders and patterns, in files that others read."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import call
from PIL import Image

import vit_jax
from vit_jax.cli import attention, embed, evaluate, export, predict
from vit_jax.data.sources import read_image
from vit_jax.weights.save import write

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")
# The same float32 operations in batches of another size, features of order one.
ATOL = 1e-5


@pytest.fixture
def photos(tmp_path):
    """A folder with seven images, one of them below another folder."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for i in range(7):
        pixels = np.random.default_rng(i).integers(0, 256, (12 + i, 20), np.uint8)
        Image.fromarray(pixels).save(folder / ("deep" if i == 3 else "") / f"{i}.png")
    return folder


def names_of(folder):
    return sorted(str(path) for path in folder.rglob("*.png"))


@pytest.mark.parametrize("batch_size", [3, 64])
def test_rows_are_those_of_python_in_the_order_given(
    monkeypatch, capsys, workdir, photos, tmp_path, batch_size
):
    out = tmp_path / "features.npz"
    last = photos / "6.png"
    words = (last, photos, "--out", out, "--batch_size", batch_size, "--json")
    code, told, err = call(monkeypatch, capsys, embed, workdir, *words)
    assert code == 0, err
    about = {"ref": str(workdir), "image_size": 8, "layer": 1, "pool": "token"}
    assert json.loads(told) == {"file": str(out), "shape": [8, 16], "skipped": 0, **about}
    found = np.load(out)
    names = [str(last), *sorted(names_of(photos), key=lambda n: n.removeprefix(str(photos)))]
    assert found["paths"].tolist() == names
    assert json.loads(str(found["about"])) == about
    wanted = vit_jax.load(workdir).features([read_image(name) for name in names])
    np.testing.assert_allclose(found["features"], wanted, rtol=0, atol=ATOL)
    if batch_size == 3:
        assert "embed: images: 3 of 8" in err


@pytest.mark.parametrize(("pool", "shape"), [("gap", (7, 16)), ("none", (7, 5, 16))])
def test_parquet_has_a_row_an_image(monkeypatch, capsys, workdir, photos, tmp_path, pool, shape):
    made = {}
    for ending in ("npz", "parquet"):
        words = (photos, "--layer", 0, "--pool", pool, "--out", tmp_path / f"x.{ending}")
        code, told, err = call(monkeypatch, capsys, embed, workdir, *words)
        assert code == 0, err
        sizes = " x ".join(map(str, shape))
        assert told == f"wrote {tmp_path}/x.{ending}: {sizes} float32, block 0, pool {pool}\n"
    made = np.load(tmp_path / "x.npz")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["paths"].to_pylist() == made["paths"].tolist()
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), made["features"])
    assert made["features"].shape == shape
    assert json.loads(table.schema.metadata[b"about"]) == json.loads(str(made["about"]))


def test_an_unreadable_image_stops_or_is_skipped_by_name(
    monkeypatch, capsys, workdir, photos, tmp_path, caplog
):
    (photos / "4.png").write_text("no image")
    out = tmp_path / "x.npz"
    code, _, err = call(monkeypatch, capsys, embed, workdir, photos, "--out", out)
    assert code == 2
    assert f"{photos}/4.png is not a readable image" in err[-1]
    assert not out.exists()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos / 'gone.png'}\n"))
    words = (photos, "-", "--out", out, "--data.on_error=skip")
    code, told, err = call(monkeypatch, capsys, embed, workdir, *words)
    assert code == 0, err
    assert told.endswith("pool token, 2 skipped\n")
    assert "4.png is not a readable image" in caplog.text
    assert np.load(out)["paths"].tolist() == [name for name in names_of(photos) if "4.png" not in name]


def test_names_come_on_stdin_and_other_sizes_and_preprocessing_are_taken(
    monkeypatch, capsys, workdir, photos, tmp_path
):
    names = names_of(photos)[:2]
    found = []
    for flags in ((), ("--image_size", 16), ("--data.mean=0.2",)):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(names) + "\n"))
        words = ("-", "--out", tmp_path / "x.npz", *flags)
        code, _, err = call(monkeypatch, capsys, embed, workdir, *words)
        assert code == 0, err
        found.append(np.load(tmp_path / "x.npz")["features"])
    assert [x.shape for x in found] == [(2, 16)] * 3
    # Another size or mean moves features by far more than rounding does.
    assert not any(np.allclose(found[0], x, atol=100 * ATOL) for x in found[1:])


def test_mistakes_are_one_line(monkeypatch, capsys, workdir, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "x.npz")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for arguments, message in (
        ((photos,), "the following arguments are required: --out"),
        ((photos, "--out", "x.csv"), "cannot write x.csv: want a name that ends in .npz, .parquet"),
        ((photos, *out, "--layer", 2), "--layer=2 is not between -2 and 1, the blocks of the model"),
        ((photos, *out, "--pool", "max"), "--pool=max is not one of model, token, gap, none"),
        ((photos, *out, "--batch_size", 0), "--batch_size=0 must be at least 1"),
        ((photos, *out, "--image_size", 9), "model.image_size=9 is not a multiple of model.patch_size=4"),
        ((photos, *out, "--data.channels=3"), "data.channels=3 is not the 1 that the model takes"),
        ((photos, *out, "--data.nam=x"), "did you mean data.name?"),
        (("-", *out), "there is no image: give files"),
        ((tmp_path / "gone.png", *out), "gone.png: there is no such file"),
        ((tmp_path / "empty", *out), "has no images in it: give another folder"),
        (("s3://bucket/x", *out), "s3:// is no place for files here"),
    ):
        code, told, err = call(monkeypatch, capsys, embed, workdir, *arguments)
        assert (code, told) == (2, "")
        assert message in err[-1]
        assert [line for line in err if not line.startswith(("loaded ", "  "))] == err[-1:]
    assert not (tmp_path / "x.npz").exists()


def test_images_and_features_are_in_a_bucket(gs, monkeypatch, capsys, workdir, photos):
    from vit_jax import paths

    for name in names_of(photos):
        place = f"gs://bkt/embedded/{name.removeprefix(str(photos) + '/')}"
        paths.write(paths.of(place), paths.read(name))
    code, _, err = call(
        monkeypatch, capsys, embed, workdir, "gs://bkt/embedded", "--out", "gs://bkt/features.npz"
    )
    assert code == 0, err
    found = np.load(io.BytesIO(paths.read("gs://bkt/features.npz")))
    wanted = vit_jax.load(workdir).features([read_image(name) for name in names_of(photos)])
    assert found["paths"][0] == "gs://bkt/embedded/0.png"
    np.testing.assert_allclose(found["features"], wanted, rtol=0, atol=ATOL)
    code, out, err = call(monkeypatch, capsys, predict, workdir, "gs://bkt/embedded", "--json")
    assert code == 0, err
    assert [json.loads(line)["path"] for line in out.splitlines()] == found["paths"].tolist()


def test_a_file_without_a_head_is_embedded_and_refused_where_classes_are_wanted(
    monkeypatch, capsys, photos, tmp_path
):
    from torch_reference import case

    model, params, _ = case("hf_dinov2")
    write(tmp_path / "hf", params, model, dialect="huggingface")
    out = tmp_path / "x.npz"
    code, _, err = call(monkeypatch, capsys, embed, tmp_path / "hf", photos, "--out", out)
    assert code == 0, err
    assert np.load(out)["features"].shape == (7, 128)
    code, told, err = call(monkeypatch, capsys, attention, tmp_path / "hf", photos / "0.png", "--json")
    assert code == 0, err
    assert len(json.loads(told)["maps"]) == 1 + model.heads
    headless = f"error: {tmp_path}/hf has no head, so it names no class: fine-tune it (train "
    for command, arguments in (
        (predict, (photos / "0.png",)),
        (evaluate, ("--data.name=digits",)),
        (export, (tmp_path / "x.stablehlo",)),
    ):
        code, told, err = call(monkeypatch, capsys, command, tmp_path / "hf", *arguments)
        assert (code, told) == (2, "")
        assert err[-1].startswith(headless)
