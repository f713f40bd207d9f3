"""Whole runs: trained, stopped, killed, continued, used."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tiny_run import final_digests, read_until, start, tiny, untimed_metrics

import vit_jax
from vit_jax import config
from vit_jax.data import loader, sources
from vit_jax.data.source import Splits
from vit_jax.errors import UserError
from vit_jax.run import loop
from vit_jax.run.setup import Setup
from vit_jax.weights.formats import orbax

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, optax_dtypes, one_device):
    """A finished run of the tiny config, made in this process."""
    workdir = tmp_path_factory.mktemp("trained")
    return workdir, loop.run(tiny(), workdir)


@pytest.fixture
def another(trained, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(trained[0], tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("later", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_kills_leave_no_trace(config_file, tmp_path, later):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    process = start(config_file, undisturbed)
    process.communicate()
    assert process.returncode == 0
    rng = random.Random(0)
    moments = ["device:", *(f"^step {step}/60" for step in sorted(rng.sample(range(2, 60), later)))]
    for moment in moments:
        process = start(config_file, killed)
        read_until(process, moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(config_file, killed)
    process.communicate()
    assert process.returncode == 0
    assert final_digests(killed) == final_digests(undisturbed)
    trees = [vit_jax.load(d / "checkpoints").params for d in (killed, undisturbed)]
    jax.tree.map(np.testing.assert_array_equal, *trees)
    assert untimed_metrics(killed) == untimed_metrics(undisturbed)


@pytest.mark.long
def test_sigterm_saves_and_the_same_command_continues(config_file, tmp_path):
    process = start(config_file, tmp_path)
    read_until(process, "^step 3/60")
    process.terminate()
    out, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    stopped = int(re.search(r"stopped by SIGTERM after step (\d+), saved", out)[1])
    assert orbax.steps_in(tmp_path / "checkpoints")[-1] == stopped
    process = start(config_file, tmp_path)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert f"continues after step {stopped}" in out
    assert f"python -m vit_jax.cli.predict {tmp_path}" in out


def test_ctrl_c_before_the_first_step_exits_with_130_and_without_a_traceback(config_file, tmp_path):
    process = start(config_file, tmp_path)
    read_until(process, "device:")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_run_leaves_what_the_readme_says(trained):
    workdir, outcome = trained
    assert outcome.step == 60
    assert outcome.metrics["examples"] == 359
    for name in (
        "config.json",
        "metrics.jsonl",
        "curves.png",
        "log.txt",
        "tensorboard",
        "checkpoints",
        "best",
    ):
        assert (workdir / name).exists(), name
    losses = [line["train/loss"] for line in untimed_metrics(workdir) if "train/loss" in line]
    assert losses[-1] < losses[0]
    with Image.open(workdir / "curves.png") as picture:
        assert picture.width > 500


def test_tensorboard_has_the_numbers_of_the_metrics_the_config_and_the_first_batch(trained):
    workdir, _ = trained
    numbers, other = {}, set()
    for path in (workdir / "tensorboard").iterdir():
        content, at = path.read_bytes(), 0
        while at < len(content):  # length, its checksum, an event, its checksum
            (length,) = struct.unpack_from("Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    numbers[event.step, value.tag] = value.simple_value
                else:
                    other.add((event.step, value.tag))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    wanted = {(line["step"], k): np.float32(v) for line in lines for k, v in line.items() if k != "step"}
    assert numbers == wanted
    confusions = {(step, "eval/confusion") for step in (20, 40, 60)}
    assert other == {(1, "config/text_summary"), (1, "first_batch")} | confusions


def test_a_finished_run_is_not_run_again(trained):
    workdir, outcome = trained
    assert loop.run(tiny(), workdir) == outcome


def test_a_checkpoint_describes_itself(trained):
    workdir, _ = trained
    record = orbax.read_record(workdir / "checkpoints" / "60")
    assert config.parse(record["config"]) == tiny()
    spec = config.parse_spec(record["spec"])
    assert spec.class_names == tuple("0123456789")
    assert spec.model.classes == 10
    assert {"jax", "flax", "vit_jax", "python"} <= set(record["versions"])
    assert {"argv", "commit", "metrics", "digests", "step"} <= set(record)


def test_another_config_is_refused_with_the_differences(trained):
    workdir, _ = trained
    with pytest.raises(UserError, match=r"another config \(train.log_every: 10 -> 5\)"):
        loop.run(tiny(log_every=5), workdir)


@pytest.mark.long
def test_an_interrupted_checkpoint_is_ignored_and_said_so(another, capsys):
    (another / "checkpoints" / "60").rename(another / "checkpoints" / "60.orbax-checkpoint-tmp")
    loop.run(tiny(), another)
    out = capsys.readouterr().out
    assert "checkpoint 60 was interrupted while it was saved: ignored" in out
    assert "continues after step 40" in out


def change_a_byte(path):
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))


@pytest.mark.long
@pytest.mark.parametrize("damage", [change_a_byte, Path.unlink])
def test_a_damaged_checkpoint_is_found_and_the_older_step_is_used(another, capsys, damage):
    before = final_digests(another)
    for data in (another / "checkpoints" / "60" / "params").rglob("d/*"):  # not all of them are read
        damage(data)
    loop.run(tiny(), another)
    out = capsys.readouterr().out
    assert "checkpoints/60" in out
    assert "using the one before" in out
    assert "continues after step 40" in out
    assert final_digests(another) == before


@pytest.mark.long
def test_a_run_from_the_start_has_no_best_of_before(another, capsys):
    shutil.rmtree(another / "checkpoints")
    loop.run(tiny(), another)
    assert "was left by a run whose checkpoints are gone: set aside" in capsys.readouterr().out
    assert orbax.steps_in(another / "best")


def test_a_work_directory_has_one_process_at_a_time(tmp_path):
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process trains in"):
        loop.run(tiny(), tmp_path)
    os.close(held)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff{\n")
    with pytest.raises(UserError, match=rf"{name} cannot be read .*: remove"):
        loop.run(tiny(), tmp_path)


def test_a_checkpoint_of_another_optimizer_is_refused_and_kept(another):
    tree = config.default()
    tree.update(config.to_dict(tiny()))
    tree.optim.name = "sgd"
    with pytest.raises(
        UserError, match=r"checkpoints/60 belongs to another model or optimizer: .* use another --workdir"
    ):
        loop.run(config.parse(tree), another, accept_change=True)
    assert orbax.steps_in(another / "checkpoints")[-1] == 60


@pytest.mark.long
def test_arrays_in_memory_train(tmp_path):
    rng = np.random.default_rng(0)
    label = np.arange(64) % 2
    image = np.where(label[:, None, None, None], 200, 50) + rng.integers(0, 40, (64, 8, 8, 1))
    source = sources.arrays(image.astype(np.uint8), label, ["dark", "light"])
    outcome = loop.run(tiny(), tmp_path, data=Splits(source, source))
    assert outcome.metrics["top1"] == 1.0
    assert vit_jax.load(tmp_path).classify([Image.new("L", (30, 20), 60)])[0][0].name == "dark"


@pytest.fixture
def broken_folder(tmp_path):
    """20 classes of 8 images, five of which cannot be read; and the names of those."""
    rng = np.random.default_rng(0)
    for c in range(20):
        (tmp_path / "images" / f"class{c:02}").mkdir(parents=True)
        for i in range(8):
            picture = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
            picture.save(tmp_path / "images" / f"class{c:02}" / f"{i}.png")
    whole = (tmp_path / "images" / "class00" / "0.png").read_bytes()
    contents = {
        "empty.jpg": b"",
        "cut.png": whole[:60],
        "text.jpg": b"hello",
        "page.png": b"<html>",
        "zero.webp": b"",
    }
    for c, (name, content) in enumerate(contents.items()):
        (tmp_path / "images" / f"class{c:02}" / name).write_bytes(content)
    return tmp_path / "images", list(contents)


def folder_config(directory, on_error):
    tree = config.default()
    tree.model.update(image_size=8, patch_size=4, width=16, depth=1, heads=2, mlp_width=16)
    tree.data.update(name="folder", dir=str(directory), on_error=on_error, threads=2)
    tree.train.update(epochs=2.0, batch_size=16)
    return config.parse(tree)


@pytest.mark.long
def test_a_folder_with_broken_files_trains_under_skip_and_names_them(broken_folder, tmp_path):
    directory, names = broken_folder
    outcome = loop.run(folder_config(directory, "skip"), tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    for name in names:
        assert f"/{name}" in log
    record = orbax.read_record(tmp_path / "run" / "checkpoints" / str(outcome.step))
    assert record["spec"]["class_names"] == [f"class{c:02}" for c in range(20)]


def test_a_folder_with_broken_files_stops_under_error(broken_folder, tmp_path):
    directory, names = broken_folder
    with pytest.raises(UserError) as e:
        loop.run(folder_config(directory, "error"), tmp_path / "run")
    assert any(f"/{name}" in str(e.value) for name in names)
    assert "data.on_error=skip" in str(e.value)


def test_load_and_classify_agree_with_evaluation(trained):
    workdir, outcome = trained
    loaded = vit_jax.load(workdir / "checkpoints" / "60")
    source = sources.open_split(loaded.data, train=False)
    pairs = [source.get(i) for i in range(source.size)]
    predictions = loaded.classify([image for image, _ in pairs], top=1)
    hits = [p[0].index == label for p, (_, label) in zip(predictions, pairs, strict=True)]
    assert np.mean(hits) == pytest.approx(outcome.metrics["top1"])
    assert sum(p.confidence for p in loaded.classify([pairs[0][0]], top=10)[0]) == pytest.approx(1, abs=1e-5)
    picture = Image.new("L", (8, 8))
    for images, top, message in (
        (picture, 5, r"in a list: \[image\]"),
        (["x.jpg"], 5, r"images\[0\] is str"),
        ([picture, np.zeros((8, 8, 1))], 5, r"images\[1\] is ndarray: want a PIL image or a uint8 array"),
        ([picture], 0, "top=0 must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            loaded.classify(images, top=top)


@pytest.mark.long
def test_a_file_can_be_the_teacher(trained, tmp_path):
    path = tmp_path / "teacher.npz"
    vit_jax.save(path, vit_jax.load(trained[0]), dialect="official")
    fields = [f"--config.loss.{x}" for x in (f"teacher={path}", "distill=soft", "distill_weight=1.0")]
    cfg = config.apply(tiny(steps=6, eval_every=0, log_every=1), fields)
    loop.run(cfg, tmp_path / "student")
    teacher, source = vit_jax.load(path), sources.open_split(cfg.data, train=True)
    image = loader.TrainBatches(source, cfg.data, (8, 8), 32, 0, 6, range(32))[0].image
    log_p = jax.nn.log_softmax(teacher.model.apply({"params": teacher.params}, (image - 127.5) / 127.5))
    # The student's head is zero at first: it says 1/10 of every class.
    wanted = (jnp.exp(log_p) * (log_p + np.log(10))).sum(axis=1).mean()
    first = untimed_metrics(tmp_path / "student")[0]
    # log p and log 10, each about 2.3 and rounded to 2.4e-7, cancel to 7e-4.
    assert first["train/loss"] == pytest.approx(float(wanted), rel=0, abs=2.4e-7)


@pytest.mark.long
def test_the_same_seed_gives_the_same_parameters(trained, tmp_path):
    workdir, _ = trained
    loop.run(tiny(), tmp_path)
    assert final_digests(tmp_path) == final_digests(workdir)


@pytest.mark.long
def test_the_command_that_uses_a_run_can_be_pasted(tmp_path, capsys):
    loop.run(tiny(steps=6, eval_every=0), tmp_path / "my run")
    told = capsys.readouterr().out
    assert f"use it: python -m vit_jax.cli.predict '{tmp_path}/my run' IMAGE" in told
    assert f"tensorboard --logdir '{tmp_path}/my run'" in told


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --workdir"):
        loop.run(tiny(), tmp_path / "file")


def test_a_finished_run_and_a_bad_init_wait_for_no_compiler(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(Setup, "compile_ahead", lambda *_, **__: pytest.fail("compiled"))
    workdir, outcome = trained
    assert loop.run(tiny(), workdir).metrics == outcome.metrics
    cfg = config.apply(tiny(), [f"--config.init={tmp_path}/none.npz"])
    with pytest.raises(UserError, match=r"none\.npz"):
        loop.run(cfg, tmp_path / "run")
