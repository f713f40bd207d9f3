"""A model with all that DINOv3 has trains alike scanned, rematerialised, over devices and over processes."""

import sys

import numpy as np
import pytest
from device_meshes import mesh_of
from flax.traverse_util import flatten_dict
from processes import free_port, launch
from tiny_run import CONFIG_FILE, final_digests, signalled_after, tiny

import vit_jax
from vit_jax import config
from vit_jax.run import distributed, loop
from vit_jax.training import mesh as meshes

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")

DINOV3 = {
    "posemb": "none",
    "rotary": "dinov3",
    "registers": 2,
    "layer_scale": 0.1,
    "qkv_bias": "query_value",
    "mlp": "swiglu",
    "norm_eps": 1e-5,
    "dropout": 0.0,
}
# Of SGD: Adam would make rounding as large as a gradient that is 0 in exact arithmetic.
TRAIN = {"optim.name": "sgd", "optim.lr": 0.05, "train.steps": 8, "train.eval_every": 0, "data.threads": 0}
ATOL = 1e-5  # after eight steps, of parameters of order one: sums in another order


def flags(**more):
    values = {**{f"model.{name}": value for name, value in DINOV3.items()}, **TRAIN, **more}
    return [f"--config.{name}={value}" for name, value in values.items()]


def parameters(workdir):
    return flatten_dict(vit_jax.load(workdir).params, sep="/")


def assert_alike(workdir, wanted):
    found = parameters(workdir)
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=ATOL, err_msg=name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one process on one device, all blocks written out."""
    folder = tmp_path_factory.mktemp("dinov3") / "run"
    loop.run(config.apply(tiny(), flags()), folder)
    return folder


@pytest.fixture(scope="module")
def wanted(run):
    found = parameters(run)
    assert {"embed/registers", "block_1/scale2/gamma", "block_0/mlp/gate/kernel"} < found.keys()
    assert "block_0/attention/key/bias" not in found
    return found


@pytest.mark.long
@pytest.mark.parametrize("form", [{"train.scan": True}, {"train.remat": "full"}], ids=str)
def test_scan_and_remat_train_alike(wanted, tmp_path, form):
    loop.run(config.apply(tiny(), flags(**form)), tmp_path / "run")
    assert_alike(tmp_path / "run", wanted)


@pytest.mark.long
def test_a_mesh_of_two_by_four_trains_alike(wanted, tmp_path, monkeypatch):
    mesh = mesh_of(8, fsdp=4)
    monkeypatch.setattr(meshes, "make", lambda device, fsdp: mesh)
    monkeypatch.setattr(meshes, "SMALLEST_SPLIT", 1)  # or nothing of so small a model would be split
    loop.run(config.apply(tiny(), flags()), tmp_path / "run")
    assert_alike(tmp_path / "run", wanted)


@pytest.mark.long
def test_a_run_that_was_stopped_ends_with_the_same_bits(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "stop_signals", signalled_after(5))
        assert loop.run(config.apply(tiny(), flags()), tmp_path / "run").signal == 15
    loop.run(config.apply(tiny(), flags()), tmp_path / "run")
    assert final_digests(tmp_path / "run") == final_digests(run)


@pytest.mark.slow
def test_two_processes_train_alike(wanted, tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG_FILE)
    command = [sys.executable, "train.py", "--config", str(tmp_path / "tiny.py"), *flags()]
    command += ["--workdir", str(tmp_path / "run"), "--coordinator", f"127.0.0.1:{free_port()}"]
    running = [launch([*command, "--processes", "2", "--process_id", str(i)], tmp_path) for i in range(2)]
    outs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outs
    assert "2 processes" in outs[0]
    assert_alike(tmp_path / "run", wanted)
