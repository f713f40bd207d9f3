"""One run, however it is laid out: devices, processes, scan, rematerialisation, micro-batches."""

import json
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from cells import FIELDS, FORMS, STEPS, held_bytes, losses
from device_meshes import mesh_of
from paths import ROOT
from processes import free_port, launch
from tiny_run import read_until, tiny

from vit_jax import config
from vit_jax.data import sources
from vit_jax.run.setup import set_up
from vit_jax.weights.formats import orbax

DEVICES = {"1 device": (1, 1), "8 data": (8, 1), "2x4 fsdp": (8, 4)}  # of this process: devices, fsdp
PROCESSES = {"2 processes": (2, 1), "4 processes, 2x2 fsdp": (4, 2)}  # a device each: processes, fsdp
CHOSEN = (True, "full", 4)  # on 2x4 in the quick tests; the whole matrix is slow
SAME = 1e-5  # the mean loss, of order 2: sums in another order, carried through 20 steps
pytestmark = pytest.mark.usefixtures("optax_dtypes")


@pytest.fixture(scope="module")
def plain(optax_dtypes, config_file):
    """(losses, batches) on one device, written out, without rematerialisation or micro-batches."""
    return losses(config_file, mesh_of(1, 1), False, "none", 1)[:2]


def same(name, got, plain):
    """Both saw the same rows in the same order, and lost the same; tells the worst difference."""
    for form, (loss, order) in zip(FORMS, got, strict=True):
        assert order == plain[1], form
        np.testing.assert_allclose(loss, plain[0], rtol=0, atol=SAME, err_msg=str(form))
    print(f"{name}: {np.abs(np.array([loss for loss, _ in got]) - plain[0]).max():.1e}")


@pytest.mark.long
def test_the_most_divided_layout_changes_no_loss(plain, config_file):
    loss, order, _ = losses(config_file, mesh_of(*DEVICES["2x4 fsdp"]), *CHOSEN)
    assert order == plain[1]
    np.testing.assert_allclose(loss, plain[0], rtol=0, atol=SAME)
    # Once the head, zero at first, has moved, other batches would be seen.
    assert np.abs(np.diff(plain[0]))[6:].min() > 100 * SAME


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_every_form_on_devices_changes_no_loss(plain, config_file, name):
    same(name, [losses(config_file, mesh_of(*DEVICES[name]), *form)[:2] for form in FORMS], plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_every_form_on_processes_changes_no_loss(plain, config_file, name):
    processes, fsdp = PROCESSES[name]
    command = [sys.executable, str(ROOT / "tests/helpers/cells.py"), str(config_file), str(fsdp)]
    address = f"127.0.0.1:{free_port()}"
    told = [[address, str(i), str(processes)] for i in range(processes)]
    outs = finish([launch(command + one, config_file.parent) for one in told])
    done = json.loads(outs[0].splitlines()[-1])
    assert f"{processes} processes" in done["mesh"]
    same(name, done["losses"], plain)


@pytest.mark.long
@pytest.mark.parametrize("scan", ["false", "true"])
def test_fsdp_divides_the_bytes_that_a_device_holds(scan):
    wide = [f"--config.{x}" for x in ("model.width=64", "model.mlp_width=256", f"train.scan={scan}")]
    cfg = config.apply(tiny(), [*wide, "--config.optim.ema=0.9"])
    data = sources.open_splits(cfg.data)
    held = {}
    for fsdp in (1, 4):
        mesh = mesh_of(8, fsdp)
        with jax.set_mesh(mesh):
            state = set_up(cfg, mesh, data).init()
        a_device = held_bytes((state.params, state.opt_state, state.ema))
        assert len(a_device) == 8
        assert len(set(a_device.values())) == 1  # none holds more than the others
        held[fsdp] = max(a_device.values())
    assert held[1] == sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state, state.ema)))
    assert held[4] < 0.3 * held[1]  # a quarter, and the small arrays whole


def finish(running, code=0):
    """What processes that share a run print until they end with `code`, all of them."""
    outs = [p.communicate()[0] for p in running]
    assert [p.returncode for p in running] == [code] * len(running), outs[0][-3000:]
    return outs


def start(path, workdir, processes, *extra):
    """Real training processes that share a run."""
    command = [sys.executable, "train.py", "--config", str(path), "--workdir", str(workdir), *FIELDS, *extra]
    address = f"127.0.0.1:{free_port()}"
    told = lambda i: ["--coordinator", address, "--process_id", str(i), "--processes", str(processes)]
    several = processes > 1
    return [launch(command + (told(i) if several else []), path.parent) for i in range(processes)]


def curve(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def agree(got, wanted):
    assert list(got) == list(wanted) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(got.values()), list(wanted.values()), rtol=0, atol=SAME)


@pytest.mark.slow
def test_what_two_processes_wrote_goes_on_on_one_and_on_four(config_file, tmp_path):
    length = ["--config.train.eval_every=0", "--config.train.keep=9"]
    finish(start(config_file, tmp_path / "one", 1, *length))
    wanted = curve(tmp_path / "one")
    outs = finish(start(config_file, tmp_path / "two", 2, *length, "--config.fsdp=2"))
    assert "2 processes" in outs[0]
    assert "step 1/" not in outs[1]  # process 0 alone writes
    agree(curve(tmp_path / "two"), wanted)
    for step in (14, STEPS):
        shutil.rmtree(tmp_path / "two" / "checkpoints" / str(step))
    for processes, fsdp in ((1, 1), (4, 2)):
        workdir = tmp_path / f"on {processes}"
        shutil.copytree(tmp_path / "two", workdir)
        other = [*length, f"--config.fsdp={fsdp}", "--config_change=accept"]
        outs = finish(start(config_file, workdir, processes, *other))
        assert "continues after step 7" in outs[0]
        agree(curve(workdir), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("told", [(1,), (0, 1)], ids=["one of them", "both"])
def test_two_processes_save_together_after_sigterm(config_file, tmp_path, told):
    running = start(config_file, tmp_path, 2, "--config.train.steps=100000", "--config.train.eval_every=0")
    read_until(running[0], "^step 3/")
    for i in told:
        running[i].send_signal(signal.SIGTERM)
    outs = finish(running, 128 + signal.SIGTERM)
    last = orbax.steps_in(tmp_path / "checkpoints")[-1]
    assert f"stopped by SIGTERM after step {last}, saved" in outs[0]
    assert orbax.read_record(tmp_path / "checkpoints" / str(last))["step"] == last
    assert list(curve(tmp_path)) == list(range(1, last + 1))
