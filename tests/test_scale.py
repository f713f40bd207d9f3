"""One run, however it is laid out: devices, processes, scan, rematerialisation, micro-batches."""

import dataclasses
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_run import CONFIG_FILE, ROOT, tiny

from vit_jax import config
from vit_jax.data import loader, sources
from vit_jax.training import job as jobs
from vit_jax.training import mesh as meshes
from vit_jax.training.distributed import expected
from vit_jax.training.job import Splits

STEPS = 20
# SGD: Adam would blow up the rounding of gradients that are 0 in exact arithmetic (the bias of keys)
FIELDS = ["--config.optim.name=sgd", "--config.optim.lr=0.05", "--config.model.dropout=0"]
LAYOUTS = {"1": (1, 1), "8 data": (8, 1), "2x4 fsdp": (8, 4)}
FORMS = list(itertools.product(LAYOUTS, (False, True), ("none", "full"), (1, 4)))
CHOSEN = [("2x4 fsdp", True, "full", 4)]  # the rest is slow
pytestmark = pytest.mark.usefixtures("optax_dtypes")


def mesh_of(devices, fsdp):
    axes = {"axis_types": (jax.sharding.AxisType.Auto,) * 2, "devices": jax.devices()[:devices]}
    return jax.make_mesh((devices // fsdp, fsdp), ("data", "fsdp"), **axes)


def losses(layout, scan, remat, parts):
    """The mean loss after each of 20 steps, and the last state."""
    cfg = config.apply(tiny(steps=STEPS, log_every=1, micro_batches=parts), FIELDS)
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, scan=scan, remat=remat))
    data = Splits(*(sources.open_split(cfg.data, train=train) for train in (True, False)))
    mesh = mesh_of(*LAYOUTS[layout])
    size = cfg.train.batch_size
    with jax.set_mesh(mesh):
        job = jobs.make(cfg, mesh, data)
        state, found = job.init(), []
        batches = loader.TrainBatches(data.train, cfg.data, (8, 8), size, 0, STEPS, range(size))
        for step in range(STEPS):
            state, _ = job.step(state, meshes.to_devices(batches[step], size, mesh))
            found.append(float(state.window.loss) / size)
    return found, state


@pytest.fixture(scope="module")
def plain(optax_dtypes):
    return losses("1", False, "none", 1)[0]


@pytest.mark.parametrize("form", CHOSEN, ids=str)
def test_a_layout_changes_no_loss(plain, form):
    got, state = losses(*form)
    np.testing.assert_allclose(got, plain, atol=1e-5)  # sums in another order, over 20 steps
    if "fsdp" in form[0]:
        for x in jax.tree.leaves(state.params):
            split = x.size >= meshes.SMALLEST_SPLIT
            assert x.addressable_shards[0].data.nbytes == x.nbytes // (4 if split else 1)


@pytest.mark.slow
@pytest.mark.parametrize("form", [f for f in FORMS if f not in CHOSEN], ids=str)
def test_every_layout_changes_no_loss(plain, form):
    np.testing.assert_allclose(losses(*form)[0], plain, atol=1e-5)  # as above


def test_fsdp_divides_the_bytes_of_a_device():
    cfg = config.apply(tiny(), ["--config.model.width=64", "--config.model.mlp_width=256"])
    data = Splits(*(sources.open_split(cfg.data, train=train) for train in (True, False)))
    held = {}
    for fsdp in (1, 4):
        mesh = mesh_of(8, fsdp)
        with jax.set_mesh(mesh):
            like = jobs.make(cfg, mesh, data).abstract
        leaves = jax.tree.leaves((like.params, like.opt_state))
        held[fsdp] = sum(np.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
    assert held[4] < 0.3 * held[1]  # a quarter, and the small ones whole


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # the script of a batch job, not a task of it
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ],
)
def test_several_processes_are_told_by_the_environment(environment, several):
    assert expected(environment) == several


def train(folder, workdir, processes, *extra):
    """Real training processes that share a run, one CPU device each; their return codes must be 0."""
    path = folder / "tiny.py"
    path.write_text(CONFIG_FILE)
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    command = [sys.executable, "train.py", "--config", str(path), "--workdir", str(workdir), *FIELDS, *extra]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    running = []
    for i in range(processes):
        told = ["--coordinator", f"127.0.0.1:{port}", "--process_id", str(i), "--processes", str(processes)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        one = command + (told if processes > 1 else [])
        running.append(subprocess.Popen(one, cwd=ROOT, env=env, **pipes))
    outs = [p.communicate()[0] for p in running]
    assert [p.returncode for p in running] == [0] * processes, outs[0][-3000:]
    return outs


def curve(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def agree(got, wanted):
    assert list(got) == list(wanted)
    np.testing.assert_allclose(list(got.values()), list(wanted.values()), atol=1e-5)  # other orders of sums


LENGTH = [f"--config.train.steps={STEPS}", "--config.train.eval_every=0", "--config.train.keep=9"]


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_one_goes_on(tmp_path):
    outs = train(tmp_path, tmp_path / "two", 2, *LENGTH)
    assert "2 processes" in outs[0]
    assert "step 1/" not in outs[1]  # process 0 alone writes
    train(tmp_path, tmp_path / "one", 1, *LENGTH)
    wanted = curve(tmp_path / "one")
    agree(curve(tmp_path / "two"), wanted)
    for step in (14, 20):
        shutil.rmtree(tmp_path / "two" / "checkpoints" / str(step))
    (out,) = train(tmp_path, tmp_path / "two", 1, *LENGTH)
    assert "continues after step 7" in out
    agree(curve(tmp_path / "two"), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [[], ["--config.model.scan=true", "--config.train.micro_batches=4"]], ids=str
)
def test_four_processes_train_what_one_does_and_go_on_from_two(tmp_path, form):
    train(tmp_path, tmp_path / "one", 1, *LENGTH)
    train(tmp_path, tmp_path / "two", 2, *LENGTH, *form, "--config.fsdp=2")
    train(tmp_path, tmp_path / "four", 4, *LENGTH, *form, "--config.fsdp=2", "--config.model.remat=full")
    agree(curve(tmp_path / "four"), curve(tmp_path / "one"))
    for step in (14, 20):
        shutil.rmtree(tmp_path / "two" / "checkpoints" / str(step))
    outs = train(tmp_path, tmp_path / "two", 4, *LENGTH, *form, "--config.fsdp=2")
    assert "continues after step 7" in outs[0]
    agree(curve(tmp_path / "two"), curve(tmp_path / "one"))
