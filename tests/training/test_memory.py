"""What the compiled step needs beside its state, as XLA tells it. Shapes alone: no weights are made."""

import importlib.util

import pytest
from paths import ROOT

FILE = ROOT / "benchmarks" / "compile.py"
pytestmark = pytest.mark.usefixtures("optax_dtypes")


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_compile", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def temporary_bytes(benchmark, size, **fields):
    done, _, _ = benchmark.compiled(*benchmark.program(size, scan=True, **fields))
    return done.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_rematerialisation_halves_the_temporary_memory_of_l16(benchmark):
    kept, again = (
        temporary_bytes(benchmark, "L/16", image_size=224, batch=8, remat=x) for x in ("none", "full")
    )
    assert again < kept / 2


def test_the_new_state_takes_the_place_of_the_old(benchmark):
    """A step that may be refused needs its gradients beside the state, but no second state."""
    size = {"image_size": 32, "batch": 1, "depth": 2}
    update, init, batch = benchmark.program("Ti/16", scan=True, **size)
    done, _, _ = benchmark.compiled(update, init, batch)
    m = done.memory_analysis()
    gradients = m.alias_size_in_bytes / 3  # of parameters and two means, all of which are donated
    assert m.temp_size_in_bytes < 2.7 * gradients  # 4.0 where the state waits for a norm of the updates
