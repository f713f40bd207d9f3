"""The strictest JAX there is: eight CPU devices, no silent promotion of dtypes or ranks."""

import os
import signal
import threading
from pathlib import Path

from environments import QUICK_COMPILE

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS") or "cpu"
os.environ["XLA_FLAGS"] = (
    f"{QUICK_COMPILE} --xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
)

if threading.current_thread() is threading.main_thread():
    # What a shell runs in the background ignores Ctrl-C, and so would all processes that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the real Hub

import jax
import pytest

# Many tests compile the same small programs: once is enough.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption("--golden-update", action="store_true", help="renew the texts in tests/golden/configs")


@pytest.fixture(scope="module")
def optax_dtypes():
    """Usual dtype promotion, for modules that take whole train steps: optax itself promotes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def one_device():
    """Runs on the first device alone: eight on two cores compile slowly, and have tests of their own."""
    from device_meshes import mesh_of

    from vit_jax.training import mesh as meshes

    with pytest.MonkeyPatch.context() as patch:
        mesh = mesh_of(1)
        patch.setattr(meshes, "make", lambda device, fsdp: mesh)
        yield mesh


@pytest.fixture(scope="session")
def bucket_server():
    """One for all tests of this process: clients keep its address."""
    import bucket

    with bucket.serve() as server:
        yield server


@pytest.fixture
def gs(bucket_server, monkeypatch):
    """The server of a bucket, gs://bkt, which this process and those that it starts talk to."""
    for name, value in bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket_server.begin()
    yield bucket_server
    bucket_server.begin()


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """The file of the tiny config, in a folder of the module's own."""
    from tiny_run import CONFIG_FILE

    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG_FILE)
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, optax_dtypes, one_device):
    """A finished run of a tiny model on digits."""
    from commands import digits_run

    return digits_run(tmp_path_factory.mktemp("run"))
