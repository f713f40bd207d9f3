"""What a checkpoint needs to say about where it came from."""

import functools
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("vit_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
LARGEST_DIFF = 200_000  # characters


@functools.cache
def collect() -> dict[str, Any]:
    """Versions, command line, devices, and the git commit of the code with what the tree changes of it."""
    return {
        "argv": sys.argv,
        "commit": _commit(Path(__file__).parent),
        "diff": _diff(Path(__file__).parent),
        "devices": [f"{d.device_kind} ({d.platform})" for d in jax.devices()],
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit(directory: Path) -> str:
    """The commit, with `+changes` if the tree differs from it."""
    commit = _git(directory, "rev-parse", "HEAD")
    changed = "+changes" if _git(directory, "status", "--porcelain", "--untracked-files=no") else ""
    return commit + changed if commit else "unknown"


def _diff(directory: Path) -> str:
    """What the tree changes of the commit; of a very large change only that there is one."""
    diff = _git(directory, "diff", "HEAD")
    return diff if len(diff) < LARGEST_DIFF else f"{len(diff)} characters, not kept"


def _git(directory: Path, *args: str) -> str:
    """What git says, or nothing where it, or a repository, is missing."""
    command = ["git", "-C", str(directory), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
