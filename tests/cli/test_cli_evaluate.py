"""The evaluate and predict commands: what they print, save and compare."""

import json
import shutil
import sys

import numpy as np
import pytest
from commands import call
from PIL import Image

import vit_jax
from vit_jax.cli import evaluate, predict
from vit_jax.data import sources
from vit_jax.data.source import labels_in
from vit_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("optax_dtypes")


def test_evaluate_saves_compares_and_draws(monkeypatch, capsys, workdir, tmp_path):
    saved, more, picture = tmp_path / "p.npz", tmp_path / "more.npz", tmp_path / "c.png"
    code, out, _ = call(
        monkeypatch, capsys, evaluate, workdir, "--save", saved, "--confusion", picture, "--json"
    )
    facts = json.loads(out)
    assert code == 0
    assert sum(row["examples"] for row in facts["classes"]) == facts["examples"] == 359
    low, high = facts["top1_interval"]
    assert low <= facts["top1"] <= high
    assert 0 <= facts["ece"] <= 1
    with np.load(saved) as file:
        assert float((file["rank"] < 1).mean()) == facts["top1"]
    with Image.open(picture) as drawn:
        assert drawn.width > 300
    for other in (saved, workdir):
        code, out, _ = call(monkeypatch, capsys, evaluate, workdir, "--compare", other, "--table")
        assert code == 0
        assert f"only {workdir} is right on 0, only {other} on 0: p = 1 (McNemar)" in out
        assert out.count("%  of") == 10
    with np.load(saved) as file:
        columns = dict(file)
    columns["label"][0] = 10  # of a model with more classes
    np.savez(more, **columns)
    code, _, err = call(monkeypatch, capsys, evaluate, workdir, "--compare", more)
    assert (code, err[-1].split(": ")[1]) == (2, f"--compare {more} is of other examples")


def test_a_broken_file_to_compare_with_is_one_line(monkeypatch, capsys, workdir, tmp_path):
    np.savez(tmp_path / "part.npz", predicted=np.arange(3))
    np.save(tmp_path / "array.npy", np.arange(3))
    whole = (tmp_path / "part.npz").read_bytes()
    middle = len(whole) // 3  # of the array
    for name, data, message in (
        ("text.npz", b"hello", "is not an npz file"),
        ("empty.npz", b"", "is empty: get the file again"),
        ("cut.npz", whole[:-40], "is cut short or damaged"),
        ("flipped.npz", whole[:middle] + b"xxxx" + whole[middle + 4 :], "the file is broken"),
        ("renamed.npz", (tmp_path / "array.npy").read_bytes(), "is not an npz file"),
        ("part.npz", whole, "has no patch embedding among its 1 arrays"),
    ):
        (tmp_path / name).write_bytes(data)
        code, _, err = call(monkeypatch, capsys, evaluate, workdir, "--compare", tmp_path / name)
        assert (code, f"{tmp_path / name}" in err[-1], message in err[-1]) == (2, True, True), err


@pytest.fixture
def digits_folder(tmp_path):
    """`make(**names)`: the digits of evaluation as image files, each digit in the folder of its name."""

    def make(folder, **names):
        source = sources.digits(train=False)
        for i in range(source.size):
            image, label = source.get(i)
            if f"d{label}" in names:
                path = tmp_path / folder / "val" / names[f"d{label}"] / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[..., 0]).save(path)
        shutil.copytree(tmp_path / folder / "val", tmp_path / folder / "train")
        return ("--data.name=folder", f"--data.dir={tmp_path / folder}")

    return make


def test_classes_of_a_folder_are_those_of_the_same_name(monkeypatch, capsys, workdir, digits_folder):
    def evaluated(*data):
        code, out, err = call(monkeypatch, capsys, evaluate, workdir, "--json", *data)
        return (json.loads(out) if code == 0 else code), err[-1]

    whole, _ = evaluated()
    rows = {row["class"]: row for row in whole["classes"]}
    some, told = evaluated(*digits_folder("some", d7="7", d2="2", d9="9"))
    assert told == "note: the data has 3 of the model's 10 classes, and none of 0, 1, 3, 4 and 3 more"
    assert some["classes"] == [rows["2"], rows["7"], rows["9"]]
    wanted = sum(rows[name]["top1"] * rows[name]["examples"] for name in "279")
    assert some["top1"] * some["examples"] == pytest.approx(wanted)


def test_classes_that_the_model_has_not_are_refused_by_name(monkeypatch, capsys, workdir, digits_folder):
    def evaluated(*data):
        code, out, err = call(monkeypatch, capsys, evaluate, workdir, "--json", *data)
        return code, [line for line in err if "examples: " not in line][-1], json.loads(out or "{}")

    code, told, _ = evaluated(*digits_folder("few", d0="ape", d1="bee"))
    assert code == 2
    assert "the data has 2 classes (ape, bee), the model 10 (0, 1, 2, 3 and 6 more)" in told
    code, told, _ = evaluated(*digits_folder("mixed", **{f"d{i}": f"{i}" for i in range(9)}, d9="ten"))
    assert code == 2
    assert "the model has no class of the data's ten: it has 0, 1, 2, 3 and 6 more" in told
    code, told, facts = evaluated(*digits_folder("words", **{f"d{i}": f"digit{i}" for i in range(10)}))
    assert code == 0
    assert told == (
        "note: the data's classes have other names than the model's, such as 'digit0' and '0': "
        "they are taken in their order"
    )
    assert facts["examples"] == 359


def test_labels_follow_names_and_ambiguous_ones_are_refused():
    of = lambda data, model: labels_in(model, data, classes=len(model)).tolist()
    assert of(["c", "a"], ["a", "b", "c"]) == [2, 0]
    assert of([], ["a", "b"]) == of(["x", "y"], ["a", "b"]) == [0, 1]
    assert of(["crane", "crane"], ["crane", "crane"]) == [0, 1]
    with pytest.raises(UserError, match="several classes of the name crane"):
        of(["crane"], ["crane", "crane", "x"])
    with pytest.raises(UserError, match="label -1, but 2 classes: give a labelled split"):
        evaluate._renumbered(np.array([0, -1]), np.arange(2))


def test_calibration_is_used_by_predict(monkeypatch, capsys, workdir, tmp_path):
    Image.new("L", (8, 8), 90).save(tmp_path / "x.png")
    code, _, err = call(monkeypatch, capsys, predict, workdir, tmp_path / "x.png", "--coverage", 0.9)
    assert code == 2
    assert "has no calibration" in err[-1]
    assert call(monkeypatch, capsys, evaluate, workdir, "--calibrate")[0] == 0
    code, out, _ = call(
        monkeypatch, capsys, predict, workdir, tmp_path / "x.png", "--coverage", 0.9, "--json"
    )
    row = json.loads(out)
    assert code == 0
    assert row["set"]
    assert set(row["set"]) <= set("0123456789")
    (own,) = vit_jax.load(workdir).classify([Image.open(tmp_path / "x.png")])
    likeliest = row["predictions"][0]
    assert likeliest["class"] == own[0].name
    assert likeliest["confidence"] == pytest.approx(
        own[0].confidence, abs=1e-6
    )  # float32, in another program
    path = workdir / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"params": 1}))
    code, _, err = call(monkeypatch, capsys, predict, workdir, tmp_path / "x.png", "--coverage", 0.9)
    assert (code, "has no calibration" in err[-1]) == (2, True)
    assert any("was fitted on other weights and is not used" in line for line in err)


def test_another_image_size_resizes_positions_and_is_not_calibrated(monkeypatch, capsys, workdir, tmp_path):
    for name in ("a", "b"):
        Image.new("L", (8, 8), ord(name)).save(tmp_path / f"{name}.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    assert call(monkeypatch, capsys, evaluate, workdir, "--calibrate")[0] == 0
    code, out, err = call(monkeypatch, capsys, predict, workdir, *files, "--image_size", 16, "--json")
    assert code == 0
    assert any("2x2 to 4x4 by" in line for line in err)
    rows = [json.loads(line)["predictions"] for line in out.splitlines()]
    wanted = vit_jax.load(workdir, image_size=16).classify([sources.read_image(path) for path in files])
    for row, best in zip(rows, wanted, strict=True):
        assert [p["class"] for p in row] == [p.name for p in best]
        # The same float32 logits in batches of another size, and softmax in numpy.
        np.testing.assert_allclose([p["confidence"] for p in row], [p.confidence for p in best], atol=1e-6)
    own, other = (
        json.loads(call(monkeypatch, capsys, evaluate, workdir, *flags, "--json")[1])
        for flags in ((), ("--image_size", 16))
    )
    assert own["examples"] == other["examples"] == 359
    assert own["loss"] != other["loss"]
    for command, flags, message in (
        (
            predict,
            (*files, "--image_size", 16, "--coverage", 0.9),
            "--coverage is calibrated for the size of",
        ),
        (evaluate, ("--image_size", 16, "--calibrate"), "--calibrate is for the model's own sizes"),
        (predict, (*files, "--image_size", 9), "model.image_size=9 is not a multiple of model.patch_size=4"),
        (evaluate, ("--image_size", 9), "model.image_size=9 is not a multiple of model.patch_size=4"),
    ):
        code, _, err = call(monkeypatch, capsys, command, workdir, *flags)
        assert code == 2
        assert message in err[-1]


def test_predict_goes_on_without_what_cannot_be_read_and_says_how_far_it_is(
    monkeypatch, capsys, workdir, tmp_path
):
    for i in range(5):
        Image.new("L", (8, 8), 40 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_text("no image")
    monkeypatch.setattr(predict, "BATCH", 2)
    sheet = tmp_path / "sheet.jpg"
    words = (tmp_path, "--json", "--data.on_error=skip", "--out", sheet)
    code, out, err = call(monkeypatch, capsys, predict, workdir, *words)
    assert code == 0
    assert [json.loads(line)["path"][-5] for line in out.splitlines()] == list("0234")
    assert "predict: images: 2 of 5" in err
    assert sheet.stat().st_size
    sheet.unlink()
    code, out, err = call(monkeypatch, capsys, predict, workdir, tmp_path)
    assert code == 2
    assert err[-1].startswith(f"error: {tmp_path}/1.png is not a readable image")
    code, _, err = call(monkeypatch, capsys, predict, workdir, tmp_path / "1.png", *words[1:])
    assert (code, err[-1]) == (2, f"error: --out {sheet}: no image could be read")


def test_evaluate_says_how_far_it_is(monkeypatch, capsys, workdir):
    _, _, err = call(monkeypatch, capsys, evaluate, workdir, "--batch_size", 100)
    told = [line for line in err if line.startswith("evaluate ")]
    assert told == [f"evaluate {workdir}: examples: {n} of 359" for n in (100, 200, 300)]


def test_predict_takes_folders_globs_and_stdin(monkeypatch, capsys, workdir, tmp_path):
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.new("L", (8, 8), 80 * i).save(folder / f"{i}.png")
    for noise in ("notes.txt", "._0.png"):
        (folder / noise).write_text("not an image")
    monkeypatch.setattr(predict, "BATCH", 2)
    paths = lambda *a: [
        json.loads(x)["path"] for x in call(monkeypatch, capsys, predict, workdir, *a)[1].splitlines()
    ]
    wanted = [str(folder / f"{i}.png") for i in range(3)]
    assert paths(tmp_path / "photos", "--json") == wanted
    _, _, err = call(monkeypatch, capsys, predict, workdir, tmp_path / "photos")
    assert f"note: {tmp_path}/photos: left out files that are no images: 1, hidden files: 1" in err
    assert paths(tmp_path / "photos" / "*" / "[01].png", "--json") == wanted[:2]
    monkeypatch.setattr(sys, "stdin", iter([f"{wanted[2]}\n", "\n"]))
    assert paths("-", "--json") == wanted[2:]
    code, _, err = call(monkeypatch, capsys, predict, workdir, tmp_path / "photos" / "*.gif")
    assert code == 2
    assert "matches no file" in err[0]
