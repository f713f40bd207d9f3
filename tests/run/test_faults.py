"""What users of a trained model met: right confidences, positions and refusals from the first command on."""

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.special
import torch_reference
from commands import call
from paths import GOLDEN, ROOT
from PIL import Image
from tiny_run import tiny
from weight_files import arrays

import vit_jax
from vit_jax import config, loaded
from vit_jax.analysis.calibration import Calibration
from vit_jax.cli import evaluate, probe
from vit_jax.cli.common import run_command
from vit_jax.data import sources
from vit_jax.data.source import Splits
from vit_jax.data.transforms import for_evaluation
from vit_jax.errors import UserError
from vit_jax.run import first_state, loop
from vit_jax.run.setup import set_up
from vit_jax.sections import Loss
from vit_jax.training import mesh as meshes
from vit_jax.training.step import normalise
from vit_jax.weights import dialects, load
from vit_jax.weights.adapt import Weights
from vit_jax.weights.formats import orbax
from vit_jax.weights.load import read
from vit_jax.weights.report import Report
from vit_jax.weights.save import write

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")


@pytest.fixture(scope="module")
def sigmoid_run(tmp_path_factory, optax_dtypes, one_device):
    fields = ("loss.name=sigmoid", "model.depth=1", "model.dropout=0", "model.head_bias=-2")
    cfg = config.apply(tiny(steps=6, eval_every=6), [f"--config.{field}" for field in fields])
    vit_jax.train(cfg, path := tmp_path_factory.mktemp("sigmoid"))
    return path


def logits_of(model, images):
    seen = model.spec.preprocess
    rows = np.stack([for_evaluation(image, seen, model.spec.model.image_hw) for image in images])
    return np.asarray(model.model.apply({"params": model.params}, normalise(rows, seen)), np.float64)


def test_a_sigmoid_model_answers_with_sigmoids_wherever_it_is_used(sigmoid_run, tmp_path, monkeypatch):
    model = vit_jax.load(sigmoid_run)
    assert model.spec.loss == "sigmoid"
    images = [sources.digits(train=False).get(i)[0] for i in range(3)]
    logits = logits_of(model, images)
    # Float32 in another batch size: the last digits of numbers of order one.
    np.testing.assert_allclose(model.probabilities(images), scipy.special.expit(logits), atol=1e-6)
    fitted = dataclasses.replace(model, calibration=Calibration(2.0, (), 9))
    np.testing.assert_allclose(fitted.probabilities(images), scipy.special.expit(logits / 2), atol=1e-6)
    assert model.classify(images, top=1)[0][0].confidence < 0.5  # ten classes, and a bias of -2
    record = orbax.read_record
    monkeypatch.setattr(orbax, "read_record", lambda step: _of_before(record(step)))
    assert vit_jax.load(sigmoid_run).spec.loss == "sigmoid"  # by its config: older specs do not say


def _of_before(record):
    return record | {"spec": {name: value for name, value in record["spec"].items() if name != "loss"}}


def test_a_folder_of_transformers_says_that_its_classes_have_sigmoids(tmp_path):
    model, params, _ = torch_reference.case("hf_vit")
    for loss in ("sigmoid", "softmax"):
        write(tmp_path / loss, params, model, dialect="huggingface", loss=loss)
        assert read(tmp_path / loss).loss == loss
    told = json.loads((tmp_path / "sigmoid" / "config.json").read_text())
    assert told["problem_type"] == "multi_label_classification"


def test_few_images_are_few_rows_and_answers_do_not_depend_on_how_many(sigmoid_run, monkeypatch):
    model, rows = vit_jax.load(sigmoid_run), []
    inner = loaded._probabilities
    monkeypatch.setattr(loaded, "_probabilities", lambda *args: rows.append(len(args[3])) or inner(*args))
    images = [Image.new("L", (8, 8), 3 * i) for i in range(73)]
    alone = model.probabilities(images[:1])
    some, many = model.probabilities(images[:8]), model.probabilities(images)
    assert rows == [1, 8, 64, 64]
    # Float32 sums in another order.
    np.testing.assert_allclose(alone, many[:1], atol=1e-6)
    np.testing.assert_allclose(some, many[:8], atol=1e-6)


def fine_tuning(init, **model):
    c = config.default()
    c.init = str(init)
    c.model.update(image_size=32, patch_size=8, width=48, depth=2, heads=3, mlp_width=96)
    c.model.update(model)
    c.data.update(name="digits", threads=0, augment="none", flip=False)
    c.optim.update(name="sgd", lr=1e-6)
    c.train.update(steps=1, batch_size=16)
    return config.parse(c)


def initial(cfg):
    return first_state.read_init(set_up(cfg, meshes.make("cpu", 1), sources.open_splits(cfg.data)))


@pytest.mark.parametrize(
    ("rule", "used"), [("auto", "bicubic_antialias"), ("official", "official"), ("bilinear", "bilinear")]
)
def test_positions_of_init_are_resized_as_its_family_does_unless_told(tmp_path, rule, used):
    model, params, _ = torch_reference.case("timm_vit")
    write(tmp_path / "w.safetensors", params, model, dialect="timm")
    sizes = {
        name: getattr(model, name) for name in ("patch_size", "width", "depth", "heads", "mlp_width", "gelu")
    }
    cfg = fine_tuning(tmp_path / "w.safetensors", **sizes, image_size=48)
    weights = initial(dataclasses.replace(cfg, init_posemb=rule))
    assert weights.report.resized[0].what.endswith(f"by {used}")


@pytest.mark.long
def test_a_family_that_resizes_positions_otherwise_than_the_run_is_told_as_a_flag(tmp_path):
    model, params, _ = torch_reference.case("timm_vit")
    write(tmp_path / "w.safetensors", params, model, dialect="timm")
    sizes = {
        name: getattr(model, name) for name in ("patch_size", "width", "depth", "heads", "mlp_width", "gelu")
    }
    vit_jax.train(fine_tuning(tmp_path / "w.safetensors", **sizes, image_size=32), tmp_path / "run")
    assert "--config.model.posemb_method=bicubic_antialias" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.long
def test_how_init_saw_its_images_is_told_as_flags(tmp_path):
    cfg = fine_tuning(GOLDEN / "vit_token.npz")
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, resize="crop", mean=(0.1, 0.2, 0.3)))
    vit_jax.train(cfg, tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert "note: init saw its images otherwise, as with" in log
    (note,) = (line for line in log.splitlines() if line.startswith("note: init"))
    flags = [word for word in note.split() if word.startswith("--config.")]
    assert "--config.data.mean=0.5" in flags
    assert read(GOLDEN / "vit_token.npz").preprocess == config.preprocess_of(config.apply(cfg, flags).data)


def test_layer_scale_that_one_of_both_lacks_is_one_line_and_claims_nothing(tmp_path):
    cfg = fine_tuning(GOLDEN / "vit_token.npz", layer_scale=0.1)
    with pytest.raises(UserError, match=r"is another model than model.layer_scale=0.1 \(it has 0.0\)"):
        vit_jax.train(cfg, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    assert vit_jax.train(fine_tuning(GOLDEN / "vit_token.npz"), tmp_path / "run").step == 1


def photos(path, **counts):
    """Grey 8x8 images, `counts[name]` of each class, brighter from class to class."""
    for label, (name, count) in enumerate(counts.items()):
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 40 + 60 * label + i % 20).save(path / name / f"{i}.png")
    return path


def on_photos(path, **train):
    cfg = tiny(steps=2, eval_every=2, checkpoint_every=2, batch_size=8, **train)
    return config.apply(
        cfg, ["--config.data.name=folder", f"--config.data.dir={path}", "--config.optim.warmup_steps=0"]
    )


@pytest.mark.long
def test_what_a_run_leaves_out_of_a_folder_is_one_line_of_its_log(tmp_path):
    path = photos(tmp_path / "photos", cat=30, dog=30)
    (path / "cat" / "._1.png").write_bytes(b"\0\5\x16\7")
    (path / "__MACOSX").mkdir()
    run = vit_jax.train(on_photos(path), tmp_path / "run")
    assert run.load().spec.class_names == ("cat", "dog")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("left out") == 1
    assert f"note: {path}: left out hidden files: 1\n" in log


@pytest.mark.long
def test_an_evaluation_tells_the_mean_of_classes_the_majority_and_the_worst(tmp_path, monkeypatch, capsys):
    path = photos(tmp_path / "photos", cat=80, dog=40, emu=10)
    run = vit_jax.train(on_photos(path), tmp_path / "run")
    data = sources.open_split(on_photos(path).data, train=False)
    pictures, labels = zip(*(data.get(i) for i in range(data.size)), strict=True)
    said = run.load().probabilities([picture.pillow for picture in pictures]).argmax(axis=1)
    hit = [(said[np.array(labels) == label] == label).mean() for label in range(3)]
    assert min(hit) == 0  # two steps are too few to learn of a class of ten
    told = ("examples", "majority", "worst", "worst_class", "macro")
    wanted = (13, 8 / 13, 0, np.argmin(hit), np.mean(hit))
    assert [run.metrics[name] for name in told] == pytest.approx(wanted)
    assert "top5" not in run.metrics
    log = (tmp_path / "run" / "log.txt").read_text()
    worst, macro = data.class_names[np.argmin(hit)], f"{np.mean(hit):.2%}"
    line = rf"top-1 \S+ \(majority class 61.54%\), mean of classes {macro}, worst {worst} 0.00%, loss"
    assert len(re.findall(line, log)) == 2
    assert "top-5" not in log
    code, out, _ = call(monkeypatch, capsys, evaluate, tmp_path / "run")
    assert code == 0
    assert re.search(f"(?m)^{line}", out.rpartition("use it:")[2])
    facts = json.loads(call(monkeypatch, capsys, evaluate, tmp_path / "run", "--json")[1])
    own = {k: v for k, v in run.metrics.items() if k not in ("loss", "worst_class")}
    assert {k: facts[k] for k in own} == pytest.approx(own)
    assert facts["worst_class"] == worst


@pytest.mark.parametrize("labels", ["cat", "cat dog"])
def test_data_of_one_class_is_refused(tmp_path, labels):
    data = [sources.arrays(np.zeros((9, 8, 8), np.uint8), [0] * 9, labels.split())] * 2
    with pytest.raises(UserError, match=r"of one class \(cat\): there is nothing to learn"):
        vit_jax.train(tiny(), tmp_path / "run", data=Splits(*data))
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_the_same_classes_in_another_order_is_refused(one_device):
    cfg = config.apply(tiny(), ["--config.loss.teacher=t.npz"])
    data, names = sources.open_splits(cfg.data), tuple("0123456789")
    spec = set_up(dataclasses.replace(cfg, loss=Loss()), one_device, data).spec
    teacher = lambda names: Weights(spec.model, {}, names, spec.preprocess, Report("t", "none", "r"))
    for fits in ((), names, tuple(map(str, range(20, 30)))):
        assert set_up(cfg, one_device, data, teacher(fits)).teacher_params == {}
    with pytest.raises(UserError, match="in another order, the first '1' for '0'"):
        set_up(cfg, one_device, data, teacher(("1", "0", *names[2:])))


@pytest.mark.long
def test_a_finished_run_with_more_steps_says_both_rates(tmp_path):
    def log_of(**fields):
        cfg = config.apply(tiny(**fields), ["--config.model.depth=1", "--config.optim.warmup_steps=2"])
        loop.run(cfg, tmp_path, accept_change=True)
        return (tmp_path / "log.txt").read_text()

    assert "learning rate goes" not in log_of(steps=10)
    assert "learning rate goes" not in log_of(steps=10, log_every=1)
    log = log_of(steps=20)
    # Cosine of lr 1e-3 after 2 steps of warm-up: (1 + cos(pi t / T)) / 2 for t / T = 7/8, then for 8/18.
    assert "note: the learning rate goes from 3.81e-05 in step 10 to 0.000587 in the next: " in log
    assert "made for 10 steps, and now for 20" in log


def test_commands_name_what_a_command_can_do(tmp_path, monkeypatch, capsys):
    def error_of(*words):
        code, _, err = call(monkeypatch, capsys, evaluate, *words)
        assert code == 2
        return err[-1]

    headless = {k: v for k, v in arrays(GOLDEN / "vit_token.npz").items() if not k.startswith("head")}
    np.savez(tmp_path / "w.npz", **headless)
    told = error_of(tmp_path / "w.npz")
    assert "classes=" not in told
    assert (
        f"has no head, so it names no class: fine-tune it (train --config.init={tmp_path / 'w.npz'})" in told
    )
    timm = next(d for d in dialects.DIALECTS if d.per_head)
    with pytest.raises(UserError, match="width 100: pass heads=, or a folder") as untold:
        load._heads(timm, {timm.patch: (100, 3, 8, 8)})
    assert untold.value.command.endswith("or what `convert --heads N` makes of it")


@pytest.mark.parametrize(
    ("ref", "near"),
    [
        ("augreg/B16", "augreg/B_16"),
        ("vit-b_16", "ViT-B_16"),
        ("AugReg/B_16-384", "augreg/B_16-384"),
        ("vit_s16_i1k_90", "big_vision/vit_s16_i1k_90ep"),
    ],
)
def test_an_unknown_model_brings_the_nearest_names(ref, near):
    with pytest.raises(UserError, match=r"did you mean .*\? `info --help` lists all") as told:
        vit_jax.load(ref)
    assert near in str(told.value)
    assert len(str(told.value)) < 300
    with pytest.raises(UserError, match=r"published checkpoint: `info --help` lists all names"):
        vit_jax.load("qqqqqqqqqqq")


def test_a_probe_says_how_far_it_is(workdir, tmp_path, monkeypatch, capsys):
    few = (
        "--neighbours",
        3,
        "--shots",
        2,
        "--lr",
        "0.1,1",
        "--weight_decay",
        0,
        "--layers",
        1,
        "--epochs",
        1,
    )
    few += ("--cache", tmp_path, "--batch_size", 128, "--pooling", "token")
    code, _, err = call(monkeypatch, capsys, probe, workdir, *few)
    assert code == 0
    told = [line for line in err if "split: examples: " in line]
    assert told[:2] == ["train split: examples: 256 of 1,438", "train split: examples: 384 of 1,438"]
    assert "probes: k-NN of 359 among 1,438 examples" in err
    assert "probes: 2 linear heads at once, 1 epochs of 1,294 examples" in err


@pytest.mark.parametrize(
    ("words", "codes"),
    [
        (["--help"], {0, 141}),  # argparse drops what it cannot print, unless it is kept until the end
        (["{run}", "--table"], {141}),
        (["{run}", "--json"], {141}),
    ],
)
def test_a_reader_that_leaves_ends_a_command_quietly(workdir, words, codes):
    # A pipe whose reader has closed it before anything is written, as `| head` may.
    read_end, write_end = os.pipe()
    os.close(read_end)
    words = [word.format(run=workdir) for word in words]
    command = [sys.executable, "-m", "vit_jax.cli.evaluate", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert done.returncode in codes
    assert "Exception" not in done.stderr
    assert "Error" not in done.stderr


def test_another_broken_pipe_is_no_reader_that_left():
    def breaks():
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        run_command(breaks)


@pytest.mark.filterwarnings("default")
def test_what_a_damaged_checkpoint_leaves_behind_is_no_news(monkeypatch, recwarn):
    async def never_begun():
        raise AssertionError

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    begun = {name: list(logging.getLogger(name).filters) for name in orbax.LOGGERS}
    coroutine = never_begun()
    orbax._Quiet().__enter__()
    orbax._Quiet().__exit__(ValueError, ValueError("damaged"), None)
    del coroutine
    assert not recwarn.list
    for name, filters in begun.items():
        monkeypatch.setattr(logging.getLogger(name), "filters", filters)


def test_names_that_an_encoding_lacks_are_escaped(tmp_path):
    model, params, _ = torch_reference.case("hf_vit")
    names = tuple(f"été {i}" for i in range(model.classes))
    write(tmp_path / "hf", params, model, dialect="huggingface", class_names=names)
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    for command in (["info", tmp_path / "hf"], ["predict", tmp_path / "hf", tmp_path / "x.png"]):
        done = subprocess.run(
            [sys.executable, "-m", f"vit_jax.cli.{command[0]}", *map(str, command[1:])],
            cwd=ROOT,
            env=os.environ | {"PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert b"\\xe9t\\xe9 " in done.stdout
        assert jax.__name__.encode() not in done.stderr  # no traceback
