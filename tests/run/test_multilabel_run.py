"""A run on images of several classes: it learns, continues exactly, is evaluated, calibrated and used."""

import csv
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from commands import call
from PIL import Image
from tiny_run import final_digests, tiny

import vit_jax
from vit_jax import config
from vit_jax.cli import data, evaluate, info, predict, probe
from vit_jax.data import sources
from vit_jax.data.source import Splits
from vit_jax.errors import UserError
from vit_jax.run import loop
from vit_jax.run.setup import set_up
from vit_jax.training import mesh as meshes
from vit_jax.training.multilabel import MultiLabelEvaluator
from vit_jax.weights.formats import orbax

pytestmark = pytest.mark.usefixtures("optax_dtypes")

NAMES = ("a", "b", "c", "d")  # sorted, as classes are: an image is of those whose lines are bright
LINES = (np.s_[::4], np.s_[2::4], np.s_[:, ::4], np.s_[:, 2::4])
STEPS = 30


def lines(count, seed):
    """uint8 images [n, 8, 8] and their labels [n, 4]."""
    rng = np.random.default_rng(seed)
    own = rng.random((count, 4)) < [0.5, 0.4, 0.3, 0.2]
    images = rng.integers(0, 100, (count, 8, 8))
    for i, c in zip(*own.nonzero(), strict=True):
        images[i][LINES[c]] += 75
    return images.astype(np.uint8), own.astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """train.csv and val.csv beside their images."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count, seed in (("train", 300, 0), ("val", 100, 1)):
        images, own = lines(count, seed)
        with (root / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", *["label"] * 4])
            for i, image in enumerate(images):
                Image.fromarray(image).save(root / f"{split}{i}.png")
                rows.writerow([f"{split}{i}.png", *(NAMES[c] for c in np.flatnonzero(own[i]))])
    return root


def configured(pictures, **fields):
    tree = config.to_dict(tiny(steps=STEPS, eval_every=10, checkpoint_every=7, log_every=1))
    told = {"name": "table", "dir": str(pictures), "augment": "none", "flip": False, "cache_gib": 0.01}
    tree["data"] |= told
    tree["loss"] |= {"name": "sigmoid", "mixup": 0.2}
    tree["optim"] |= {"lr": 1e-2}
    tree["model"] |= {"depth": 1}
    for name, value in fields.items():
        section, _, leaf = name.partition("__")
        tree[section][leaf] = value
    return config.parse(tree)


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory, one_device):
    workdir = tmp_path_factory.mktemp("run")
    return SimpleNamespace(workdir=workdir, metrics=loop.run(configured(pictures), workdir).metrics)


def test_it_learns_and_logs_its_metrics(trained, capsys):
    assert trained.metrics["map"] > 0.8  # of guesses: the shares of the classes, 0.2 to 0.5
    told = [json.loads(line) for line in (trained.workdir / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in told if "eval/map" in line]
    assert [line["step"] for line in measured] == [10, 20, 30]
    assert {"eval/f1_micro", "eval/f1_macro", "eval/loss", "eval/top1", "eval/worst"} <= measured[-1].keys()
    assert measured[-1]["eval/map"] == trained.metrics["map"]
    assert [line["train/top1"] for line in told if "train/top1" in line][-1] > 0.5
    assert "evaluation mean average precision " in (trained.workdir / "log.txt").read_text()


class Stop(vit_jax.Sink):
    def __init__(self, step):
        self.step = step

    def add(self, step, values):
        if step == self.step:
            raise RuntimeError("stopped by the test")


@pytest.mark.long
def test_the_best_may_be_that_of_the_highest_mean_average_precision(trained, pictures, tmp_path):
    loop.run(configured(pictures, train__best="map", train__steps=20), tmp_path)
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in told if "eval/map" in line), key=lambda line: line["eval/map"])
    (kept,) = [int(path.name) for path in (tmp_path / "best").iterdir() if path.name.isdigit()]
    assert kept == best["step"]


@pytest.mark.long
def test_a_run_that_was_stopped_ends_with_the_same_bits(trained, pictures, tmp_path):
    with pytest.raises(RuntimeError, match="stopped by the test"):
        loop.run(configured(pictures), tmp_path, sinks=[Stop(17)])
    assert loop.run(configured(pictures), tmp_path).metrics == trained.metrics
    assert final_digests(tmp_path) == final_digests(trained.workdir)


@pytest.mark.long
def test_the_same_labels_from_arrays_give_the_same_run(trained, pictures, tmp_path):
    splits = Splits(*(sources.arrays(*lines(n, seed), NAMES) for n, seed in ((300, 0), (100, 1))))
    loop.run(configured(pictures), tmp_path, data=splits)
    assert final_digests(tmp_path) == final_digests(trained.workdir)


def test_evaluate_calibrates_and_predict_and_classify_use_the_thresholds(
    trained, pictures, monkeypatch, capsys, tmp_path
):
    run = trained.workdir
    (step,) = orbax.steps_in(run / "best")
    best = orbax.read_record(run / "best" / str(step))["metrics"]
    code, out, _ = call(monkeypatch, capsys, evaluate, run, "--json", "--save", tmp_path / "p.npz")
    facts = json.loads(out)
    assert (code, facts["examples"], facts["calibrated"]) == (0, 100, False)
    for name in ("map", "f1_micro", "f1_macro", "top1"):
        # The best step's model in float32, in batches of another size.
        assert facts[name] == pytest.approx(best[name], abs=1e-6), name
    with np.load(tmp_path / "p.npz") as file:
        assert (file["label"].shape, file["logits"].shape) == ((100, 4), (100, 4))
        np.testing.assert_array_equal(file["label"], lines(100, 1)[1])
    assert [row["class"] for row in facts["classes"]] == list(NAMES)
    assert {row["threshold"] for row in facts["classes"]} == {0.5}
    images = [Image.fromarray(image) for image in lines(100, 1)[0]]
    halves = [{p.name for p in row} for row in vit_jax.load(run).classify(images)]

    assert call(monkeypatch, capsys, evaluate, run, "--calibrate", "--table")[0] == 0
    facts = json.loads(call(monkeypatch, capsys, evaluate, run, "--json", "--calibrate")[1])
    thresholds = facts["calibration"]["thresholds"]
    assert facts["calibrated"]
    assert {row["class"]: row["threshold"] for row in facts["classes"]} == thresholds
    assert facts["f1_macro"] == pytest.approx(facts["calibration"]["f1_macro"], abs=1e-12)
    loaded = vit_jax.load(run)
    assert loaded.temperature == facts["calibration"]["temperature"]
    p = loaded.probabilities(images)
    wanted = [{NAMES[c] for c in range(4) if row[c] >= thresholds[NAMES[c]]} for row in p]
    assert wanted != halves
    assert [{found.name for found in row} for row in loaded.classify(images)] == wanted
    assert [len(row) for row in loaded.classify(images[:3], top=2)] == [2, 2, 2]
    files = [pictures / f"val{i}.png" for i in range(100)]
    _, out, _ = call(monkeypatch, capsys, predict, run, *files, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [set(row["set"]) for row in rows] == wanted
    for row, own in zip(rows[:5], p, strict=False):
        got = {found["class"]: found["confidence"] for found in row["predictions"]}
        assert got == pytest.approx(dict(zip(NAMES, own.tolist(), strict=True)), abs=1e-6)  # float32
    fitted = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps(fitted | {"thresholds": [1.5] * 4}))  # no class has that
    code, out, _ = call(monkeypatch, capsys, predict, run, files[0], "--out", tmp_path / "sheet.png")
    assert (code, out.splitlines()[-1]) == (0, "  set: none")
    (run / "calibration.json").unlink()


def test_other_commands_know_several_labels_or_refuse_them(trained, pictures, monkeypatch, capsys, tmp_path):
    run = trained.workdir
    _, out, _ = call(monkeypatch, capsys, info, run)
    assert "a sigmoid of each class, of which an image may have several" in out
    assert "result         mean average precision " in out
    file = tmp_path / "c.py"
    file.write_text(
        "from vit_jax import config\ndef get_config(arg=''):\n    c = config.default()\n"
        f"    c.data.update(name='table', dir={str(pictures)!r}, channels=1)\n"
        "    c.model.update(image_size=8, patch_size=4)\n    c.train.steps = 1\n    return c\n"
    )
    code, out, _ = call(
        monkeypatch, capsys, data, file, "--json", "--seconds", 0, "--out", tmp_path / "s.png"
    )
    counts = lines(300, 0)[1].sum(axis=0, dtype=int)
    assert (code, json.loads(out)["class_counts"]) == (0, dict(zip(NAMES, counts.tolist(), strict=True)))
    for command, words, message in (
        (probe, (run,), "the data gives several labels per image: probes are for one"),
        (evaluate, (run, "--compare", run), "--compare is for one label per image"),
        (evaluate, (run, "--confusion", tmp_path / "c.png"), "--confusion is for one label per image"),
        (evaluate, (run, "--worst", tmp_path / "c.png"), "--worst is for one label per image"),
        (evaluate, (run, "--csv", tmp_path / "c.csv"), "--csv is for one label per image"),
        (
            evaluate,
            (run, "--data.name=digits"),
            "was trained on several labels per image, the data gives one",
        ),
        (predict, (run, pictures / "val0.png", "--coverage", 0.9), "--coverage is for one class per image"),
    ):
        code, _, err = call(monkeypatch, capsys, command, *words)
        assert (code, message in err[-1]) == (2, True), err[-1]


def test_what_does_not_go_with_several_labels_is_one_line(pictures, one_device):
    some = Splits(*(sources.arrays(*lines(n, seed), NAMES) for n, seed in ((30, 0), (10, 1))))
    one = sources.arrays(lines(10, 1)[0], np.arange(10) % 4, NAMES)
    same = sources.arrays(lines(10, 1)[0], np.tile([0, 1, 1, 0], (10, 1)), NAMES)
    single = sources.arrays(lines(10, 1)[0], np.arange(10)[:, None] % 2, ["one"])
    for splits, fields, message in (
        (
            some,
            {"loss__name": "softmax"},
            "the data gives several labels per image, loss.name=softmax learns one: ",
        ),
        (some, {"loss__teacher": "x"}, "several labels per image, loss.teacher=x teaches one: leave it out"),
        (some, {"data__balance": True}, "data.balance=True counts images by their one class: leave it out"),
        (some, {"loss__class_weights": "balanced"}, "loss.class_weights=balanced counts images by their one"),
        (
            some,
            {"train__best": "macro"},
            "train.best=macro is not measured on this data: give one of top1, map",
        ),
        (Splits(one, one), {"train__best": "map", "loss__name": "softmax"}, "train.best=map is not measured"),
        (some, {"model__classes": 7}, "model.classes=7 is not the 4 of the data: leave it 0"),
        (Splits(some.train, one), {}, "one split gives several labels per image and the other one"),
        (
            Splits(same, same),
            {},
            "the training data gives all images the same labels: there is nothing to learn",
        ),
        (Splits(single, single), {}, r"the training data is of one class \(one\)"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            set_up(configured(pictures, **fields), one_device, splits)
        assert "\n" not in str(caught.value)


def test_eight_devices_measure_what_one_does(trained):
    loaded = vit_jax.load(trained.workdir)
    source, cfg = sources.arrays(*lines(100, 1), NAMES), loaded.data
    found = []
    for devices, size in (
        (jax.devices()[:1], 100),
        (jax.devices(), 24),
    ):  # in the second, 20 rows are padding
        mesh = meshes.over(devices, 1)
        with jax.set_mesh(mesh):
            params = jax.device_put(loaded.params, meshes.everywhere(mesh))
            measure = MultiLabelEvaluator(loaded.model, loaded.spec, mesh, size)
            found.append(measure(params, source, cfg))
    # The same float32 logits but for the order of their sums.
    assert found[0] == pytest.approx(found[1], abs=1e-5)
