"""What the C library does with freed memory, where steps run on the CPU."""

import ctypes
import os
import sys
from importlib.util import find_spec

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # malloc.h of glibc
NEVER, LARGEST = -1, 2**31 - 1  # bytes


def only_cpu(device: str) -> bool:
    """Whether jax will use the CPU, as `device` of the config or JAX_PLATFORMS asks or for want of a plugin.

    Asked before jax starts its threads, as `keep_freed` must be called before.
    """
    asked = (device, os.environ.get("JAX_PLATFORMS"))
    return "cpu" in asked or not any(find_spec(name) for name in ("jax_plugins", "libtpu"))


def keep_freed() -> bool:
    """Have glibc keep freed memory for the next step; False where the C library is another.

    To be called before jax starts its threads: those that have begun keep to arenas of their own.

    The temporaries of a compiled step are one allocation, which glibc would return to the kernel after each
    step: the pages of the next one are then zeroed as they are first written, a quarter of a small model's
    step (benchmarks/LOG.md). One arena, because only the first can hold so much. Allocations above 2 GiB are
    left as they are.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    wanted = {ARENA_MAX: 1, TRIM_THRESHOLD: NEVER, MMAP_THRESHOLD: LARGEST}
    return all([mallopt(key, value) for key, value in wanted.items()])
