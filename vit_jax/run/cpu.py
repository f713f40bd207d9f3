"""What only CPUs need: freed memory that the C library keeps, and a process that did not compile.

LLVM leaves the C library's heap in tens of thousands of pieces, and every buffer of a step is searched in
them: small models are slower by a third than in a process that did not compile (benchmarks/LOG.md). So
training from the command line replaces a process that had to compile by one that finds its programs in the
compilation cache.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec

from vit_jax import paths
from vit_jax.paths import Path

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # malloc.h of glibc
NEVER, LARGEST = -1, 2**31 - 1  # bytes
# jax's event for a program that it had to compile and then kept.
MISSED = "/jax/compilation_cache/cache_misses"
# In the environment: the runs for which this command was started again, and a pipe from the process before.
STARTED_AGAIN, CAUGHT = "VIT_JAX_STARTED_AGAIN", "VIT_JAX_CAUGHT_SIGNALS"


def only_cpu(device: str) -> bool:
    """Whether jax will use the CPU: by `device` of the config, by JAX_PLATFORMS, or for want of a plugin.

    Asked before jax starts its threads, since `keep_freed` must be called before.
    """
    asked = (device, os.environ.get("JAX_PLATFORMS"))
    return "cpu" in asked or not any(find_spec(name) for name in ("jax_plugins", "libtpu"))


def keep_freed() -> bool:
    """Have glibc keep freed memory for the next step; False where the C library is another.

    To be called before jax starts its threads: threads that have begun keep their own arenas.

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


def after_compiling(device: str) -> Callable[[Path], None]:
    """A function that replaces this process by one of the same command if anything was compiled since.

    Call it with the run's folder. It replaces once per run: a cache that cannot be written does not start the
    run again and again. It does nothing where `device` of the config may be no CPU, where the C library is
    not glibc, for one of several processes, without a compilation cache, under a Python debugger, and where
    the program came from standard input. Freed memory is kept from here on, see `keep_freed`.
    """
    import jax  # not before it is known that the process trains

    started = json.loads(os.environ.pop(STARTED_AGAIN, "") or "[]")
    if not (only_cpu(device) and keep_freed()):
        return lambda workdir: None
    seen: set[str] = set()
    jax.monitoring.register_event_listener(lambda event, **_: seen.add(event))

    def compiled(workdir: Path) -> None:
        run = str(paths.absolute(workdir))
        if MISSED not in seen or run in started or jax.process_count() > 1:
            return
        if sys.gettrace() or sys.argv[0] == "-":
            return
        print("compiled: starting again, as a process that finds its programs runs them faster", flush=True)
        os.environ[STARTED_AGAIN] = json.dumps([*started, run])
        start_again()

    return compiled


def start_again() -> None:
    """Replace this process by one of the same command, without losing a Ctrl-C or SIGTERM on the way.

    Signals are blocked, and so wait for the new process, which inherits the mask, until it calls
    `take_up_signals`. Those that another thread of this process still catches go through a pipe.
    """
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    os.environ[CAUGHT] = str(reading)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def take_up_signals() -> None:
    """Let signals through that `start_again` held back. To be called once handlers are set."""
    pipe = os.environ.pop(CAUGHT, None)
    if pipe is None:
        return
    os.set_blocking(int(pipe), False)
    try:
        caught = os.read(int(pipe), 1)  # the number of the first signal; empty if there was none
    finally:
        os.close(int(pipe))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    if caught:
        signal.raise_signal(caught[0])
