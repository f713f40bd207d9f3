"""Freed memory is kept: seen by the page faults of a process."""

import subprocess
import sys

import pytest

from vit_jax.run import cpu

PROGRAM = """
import ctypes
import resource
import sys
import threading
from vit_jax.run import cpu

if sys.argv[1] == "keep":
    assert cpu.keep_freed()

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def use():
    place = ctypes.c_void_p(libc.malloc(2**26))  # 64 MiB: 16,384 pages
    libc.memset(place, 1, 2**26)
    libc.free(place)

def in_a_thread():
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()

in_a_thread()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    in_a_thread()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux does")
def test_pages_of_freed_arrays_are_kept():
    def faults(how):
        command = [sys.executable, "-c", PROGRAM, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("leave") > 10_000
    assert faults("keep") < 1_000


@pytest.mark.parametrize(
    ("device", "platforms", "plugins", "told"),
    [
        ("any", "", (), True),
        ("any", "", ("jax_plugins",), False),
        ("any", "", ("libtpu",), False),
        ("cpu", "", ("jax_plugins",), True),
        ("any", "cpu", ("jax_plugins",), True),
    ],
)
def test_the_cpu_is_told_before_jax_starts(monkeypatch, device, platforms, plugins, told):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(cpu, "find_spec", lambda name: name in plugins)
    assert cpu.only_cpu(device) == told
