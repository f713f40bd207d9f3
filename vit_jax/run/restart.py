"""A run that had to compile starts again with its programs from the compilation cache, on the CPU.

LLVM leaves the C library's heap in tens of thousands of pieces, and every buffer of a step is searched in
them: small models are slower by a third than in a process that did not compile (benchmarks/LOG.md).
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from vit_jax.run import host_memory

# jax's name for a program that it had to compile and then kept.
MISSED = "/jax/compilation_cache/cache_misses"
# In the environment: the runs for which this command was started again.
STARTED_AGAIN = "VIT_JAX_STARTED_AGAIN"


def after_compiling(device: str) -> Callable[[Path], None]:
    """A function that replaces this process by one of the same command if anything was compiled since.

    It is called with the run's folder, and does so once a run: a cache that cannot be written starts nothing
    again and again. It does nothing where `device` of the config may be no CPU, where the C library is not
    glibc, for one of several processes, without a compilation cache, under a debugger of Python, and where
    standard input was the program and is spent. Freed memory is kept from here on, as
    `host_memory.keep_freed` says.
    """
    started = json.loads(os.environ.pop(STARTED_AGAIN, "") or "[]")
    if not (host_memory.only_cpu(device) and host_memory.keep_freed()):
        return lambda workdir: None
    seen: set[str] = set()
    jax.monitoring.register_event_listener(lambda event, **_: seen.add(event))

    def compiled(workdir: Path) -> None:
        run = str(workdir.absolute())
        if MISSED not in seen or run in started or jax.process_count() > 1:
            return
        if sys.gettrace() or sys.argv[0] == "-":
            return
        print("compiled: starting again, as a process that finds its programs runs them faster", flush=True)
        os.environ[STARTED_AGAIN] = json.dumps([*started, run])
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    return compiled
