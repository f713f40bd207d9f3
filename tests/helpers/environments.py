"""The environment of processes that tests start, and how all of them compile."""

import os

# Most of the suite's time was compiling, most of that the making of machine code that runs for a moment: so
# no optimisation by LLVM, elementwise loops without MLIR's emitters, and one module a program. What XLA makes
# of a program is the same; the slow tests and .ci/run's own commands take the full optimisation. A train step
# of a tiny model compiles in 1.3 s of processor time instead of 9.5 (2 cores, 2026-11-29).
QUICK_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)


def one_device(**more: str) -> dict[str, str]:
    """That of this process with one CPU device instead of the eight of these tests."""
    return os.environ | {"XLA_FLAGS": QUICK_COMPILE, "JAX_PLATFORMS": "cpu"} | more
