"""What every command shares: the shape of --help, one line for a user's mistake, a traceback for ours."""

import argparse
import os
import sys
from collections.abc import Callable

from vit_jax.errors import UserError


def make_parser(description: str | None, examples: str) -> argparse.ArgumentParser:
    """A parser whose --help ends with `examples` as they are written."""
    return argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run_command(main: Callable[[], int | None]) -> int:
    """Exit code of `main`; 2 after a UserError, whose message goes to stderr."""
    try:
        return main() or 0
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1  # the reader went away, as in `| head`


def use_huge_pages() -> None:
    """Start this program again with glibc's large allocations on huge pages, unless GLIBC_TUNABLES is set.

    On a CPU, XLA allocates its temporaries anew at each step, and the kernel makes 4 KiB pages one by one: a
    quarter of the time (benchmarks/LOG.md). glibc reads the variable only when a process begins.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
