"""The environment of processes that tests start, and how all of them compile."""

import os

# Most of the suite's time is compiling, most of that is LLVM, and half of it optimises machine code that
# runs for a moment. What XLA makes of a program is the same; the slow tests and .ci/run's own commands take
# the full optimisation.
QUICK_COMPILE = "--xla_backend_optimization_level=0"


def one_device(**more: str) -> dict[str, str]:
    """That of this process with one CPU device instead of the eight of these tests."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return environment | {"XLA_FLAGS": QUICK_COMPILE, "JAX_PLATFORMS": "cpu"} | more
