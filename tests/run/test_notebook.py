"""`vit_jax.config`, `vit_jax.train` and what comes of them, as in a notebook."""

import logging
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from environments import one_device
from paths import ROOT
from PIL import Image
from tiny_run import tiny

import vit_jax
from vit_jax.data import sources
from vit_jax.data.source import Splits
from vit_jax.errors import UserError
from vit_jax.run.sinks import Bar

SCRIPT = """
import vit_jax
from vit_jax.data import sources

cfg = vit_jax.config("configs/quickstart.py", {"train.epochs": 4.0, "optim.warmup_steps": 5})
run = vit_jax.train(cfg, WORKDIR)
loaded = run.load()
digits = sources.digits(train=False)
images = [digits.get(i)[0] for i in range(20)]
hits = [row[0].index == digits.get(i)[1] for i, row in enumerate(loaded.classify(images, top=1))]
print(run.step, run.metrics["top1"], sum(hits), (run.workdir / "curves.png").stat().st_size > 1000)
"""


BEFORE = """
import logging, os, signal, sys

def state():
    log = logging.getLogger("vit_jax")
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    hooks = sys.unraisablehook, list(logging.getLogger("absl").filters)
    return os.getpid(), handlers, list(log.handlers), log.propagate, hooks

STATE = state()
"""
AFTER = "print(os.getpid(), STATE == state())"


@pytest.mark.long
def test_ten_lines_train_evaluate_predict_and_plot_in_one_process(tmp_path):
    assert len([line for line in SCRIPT.splitlines() if line]) <= 10
    script = BEFORE + SCRIPT.replace("WORKDIR", repr(str(tmp_path / "run"))) + AFTER
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=one_device(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate()
    assert process.returncode == 0, err
    *_, facts, last = out.splitlines()
    step, top1, hits, plotted = facts.split()
    assert (step, plotted) == ("90", "True")
    assert float(top1) > 0.3  # a tenth is chance; this run of four epochs reaches about a half
    assert int(hits) > 4
    assert last == f"{process.pid} True"


@pytest.mark.long
@pytest.mark.usefixtures("optax_dtypes", "one_device")
def test_a_thread_trains_on_data_of_its_own_and_leaves_nothing_behind(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)
    source = sources.arrays(images, np.arange(64) % 4, "abcd")
    state = lambda: (
        *(signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)),
        *logging.getLogger("vit_jax").handlers,
    )
    before, runs = state(), []
    cfg, data = tiny(steps=6, eval_every=3), Splits(source, source)

    def work():
        with jax.numpy_dtype_promotion("standard"):  # optax promotes; the tests' strictness is a thread's own
            runs.append(vit_jax.train(cfg, tmp_path, data=data))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert state() == before
    (run,) = runs
    assert run.step == 6
    assert run.metrics["examples"] == 64
    assert run.load().classify([Image.fromarray(images[0])], top=1)[0][0].name in "abcd"


def test_a_config_file_of_the_checkout_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert vit_jax.config("configs/quickstart.py").data.name == "digits"
    with pytest.raises(UserError, match=r"no config file at configs/quick.py: try configs/quickstart.py"):
        vit_jax.config("configs/quick.py")


def test_lines_are_text_in_a_notebook_too(monkeypatch, capsys):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    terminal = Bar(step=0, steps=2)
    terminal.say("a line")
    terminal.close()
    assert capsys.readouterr().out == "a line\n"


def test_overrides_are_checked_like_those_of_the_command_line():
    cfg = vit_jax.config(ROOT / "configs" / "vit_b16.py", {"optim.lr": 3e-4, "model.image_size": 384})
    assert (cfg.optim.lr, cfg.model.image_size, cfg.model.depth) == (3e-4, 384, 12)
    assert vit_jax.config("configs/vit_b16.py:finetune").train.steps == 20_000
    for overrides, message in (
        ({"optim.lrr": 1.0}, "config has no field optim.lrr: did you mean optim.lr?"),
        ({"optim.lr": "fast"}, "optim.lr='fast' is not a number"),
        ({"model.scan": True}, "config has no field model.scan: did you mean train.scan?"),
    ):
        with pytest.raises(UserError) as e:
            vit_jax.config("configs/vit_b16.py", overrides)
        assert str(e.value) == message
