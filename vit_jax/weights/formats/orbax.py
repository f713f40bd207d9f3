"""Steps on Orbax: what is in them, and how they are read and checked.

A step holds `params`, `rest` (optimizer state, window sums) and `record`, a JSON object that makes the
parameters usable on their own: config, spec, class names, versions, and a digest a leaf. Orbax ignores saves
that a kill interrupted; the digests catch what it does not notice: changed bytes in array data.
"""

import errno
import logging
import os
import pathlib
import re
import shutil
import sys
import warnings
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from vit_jax import paths
from vit_jax.errors import UserError, first_line
from vit_jax.paths import Path

CHECKPOINTS, BEST = "checkpoints", "best"  # folders of numbered steps in that of a run
CONFIG = "config.json"  # beside them
PARAMS, REST, RECORD = "params", "rest", "record"
COMMITTED = "commit_success.txt"  # in a bucket, what makes a step a finished one
INTERRUPTED = "*.orbax-checkpoint-tmp"  # on this machine, the names of steps that are not finished
LOGGERS = ("absl", "asyncio")  # that Orbax's errors go to
UNBEGUN = r"coroutine '[\w.<>]+' was never awaited"
OWN = {"step", "shapes", "digests"}  # what `record_of` adds to a record


class OtherState(UserError):
    """A checkpoint of another model or optimizer: sound, but not what was asked for."""


def step_dir(ref: Path) -> Path:
    """The step that a run directory stands for: its best, else its newest. Raises UserError."""
    if (ref / PARAMS).is_dir():
        return ref
    for folder in (ref / BEST, ref / CHECKPOINTS, ref):
        if steps := steps_in(folder):
            return folder / str(steps[-1])
    kind = "a folder that is " if ref.is_dir() else ""
    raise UserError(f"{ref} is {kind}neither a run directory with a checkpoint nor one step of it")


def steps_in(directory: Path) -> list[int]:
    """Numbers of the finished steps of a folder, ascending."""
    number = re.compile(r"0|[1-9][0-9]*")
    if paths.in_bucket(directory):
        found = [marker.parent.name for marker in directory.glob(f"*/{COMMITTED}")]  # one request
    else:
        found = [p.name for p in directory.glob("*") if p.is_dir()]
    return sorted(int(name) for name in found if number.fullmatch(name))


def interrupted_in(directory: Path) -> list[str]:
    """Steps whose save was interrupted, which are ignored."""
    if not paths.in_bucket(directory):
        return sorted(p.name.split(".")[0] for p in directory.glob(INTERRUPTED))
    begun = {name for name in paths.names_in(directory) if name.isdigit()}
    return sorted(begun - set(map(str, steps_in(directory))))


def set_aside(step_dir: Path, target: Path) -> None:
    """Move a step to a folder where it is no checkpoint. A kill leaves it here, there, or interrupted."""
    if isinstance(step_dir, pathlib.Path) and isinstance(target, pathlib.Path):
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        step_dir.rename(target)
    else:  # without its marker it is none
        (step_dir / COMMITTED).unlink()
        paths.bucket().copy(str(step_dir), str(target), recursive=True)
        paths.bucket().rm(str(step_dir), recursive=True)


def read_record(step_dir: Path) -> dict[str, Any]:
    """The record of one step. Raises UserError if there is none that can be read."""
    try:
        with quiet, context():
            record = ocp.load_checkpointables(str(paths.absolute(step_dir)), {RECORD: None})[RECORD]
    except Exception as e:
        raise UserError(f"checkpoint {step_dir} cannot be read ({root_cause(e)})") from e
    if not isinstance(record, dict) or not record.keys() >= OWN:
        raise UserError(f"checkpoint {step_dir} cannot be read (its record lacks {', '.join(sorted(OWN))})")
    return record


def record_of(step: int, record: dict[str, Any], trees: dict[str, Any]) -> dict[str, Any]:
    """`record` with what the trees are checked by when they are read."""
    return record | {
        "step": step,
        "shapes": {name: shapes(tree) for name, tree in trees.items()},
        "digests": {name: digest(tree) for name, tree in trees.items()},
    }


def read_trees(step_dir: Path, record: dict[str, Any], **abstract: Any) -> dict[str, Any]:
    """The trees of one step, each leaf checked. Raises UserError if anything is missing or changed."""
    for name, tree in abstract.items():
        _check_shapes(step_dir, name, stored=record["shapes"][name], wanted=shapes(tree))
    try:
        with quiet, context():
            trees = ocp.load_checkpointables(str(paths.absolute(step_dir)), abstract)
    except Exception as e:
        raise UserError(f"checkpoint {step_dir} cannot be read ({root_cause(e)})") from e
    for name, tree in trees.items():
        wanted, got = record["digests"][name], digest(tree)
        changed = [path for path in wanted if wanted[path] != got.get(path)]
        if changed:
            raise UserError(
                f"checkpoint {step_dir} has changed on disk: {name}{changed[0]} has another digest"
            )
    return trees


def shapes(tree: Any) -> dict[str, str]:
    """{path: float32[16,8]} of a tree of arrays or abstract arrays."""
    describe = lambda x: f"{x.dtype}[{','.join(map(str, x.shape))}]"
    return {jax.tree_util.keystr(p): describe(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def _check_shapes(step_dir: Path, name: str, *, stored: dict[str, str], wanted: dict[str, str]) -> None:
    other = [path for path in stored | wanted if stored.get(path) != wanted.get(path)]
    if other:
        first = other[0]
        raise OtherState(
            f"checkpoint {step_dir} belongs to another model or optimizer: {len(other)} arrays differ, "
            f"such as {name}{first}, {stored.get(first, 'missing')} and not {wanted.get(first, 'there')}: "
            "use another --workdir, or --config.init to start from its parameters"
        )


def digest(tree: Any) -> dict[str, int]:
    """{path: uint32} that does not depend on the sharding: a sum of the bits, weighted by position."""
    values = jax.device_get(_digests(tree))
    return {jax.tree_util.keystr(p): int(v) for p, v in jax.tree_util.tree_leaves_with_path(values)}


def compile_digests(trees: dict[str, Any]) -> None:
    """Compile what `digest` of each tree needs; leaves are arrays, or their shapes and layout."""
    for tree in trees.values():
        _digests.lower(tree).compile()


@jax.jit
def _digests(tree: Any) -> Any:
    return jax.tree.map(_digest_leaf, tree)


def _digest_leaf(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32).reshape(-1)
    odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1  # odd weights: no single change is multiplied to 0
    return (bits * odd).sum(dtype=jnp.uint32)


class _Quiet:
    """While entered, and for good after an error: leave a failed file to the exception.

    Orbax would also log each error that it raises, and it closes event loops that results of other files
    still come to, some after the exception: Python reports those as errors that nobody can catch, and warns
    of the reads that were never begun.
    """

    def __init__(self) -> None:
        self._inside, self._before = 0, sys.unraisablehook

    def __enter__(self) -> None:
        if not self._inside:
            self._before, sys.unraisablehook = sys.unraisablehook, self._hook
            for name in LOGGERS:
                logging.getLogger(name).addFilter(self._is_news)
        self._inside += 1

    def __exit__(self, kind: type[BaseException] | None, e: Any, trace: TracebackType | None) -> None:
        self._inside -= kind is None
        if kind is not None:
            warnings.filterwarnings("ignore", UNBEGUN, RuntimeWarning)
        if not self._inside:
            for name in LOGGERS:
                logging.getLogger(name).removeFilter(self._is_news)
            sys.unraisablehook = self._before

    def _hook(self, error: Any) -> None:
        late = isinstance(error.exc_value, RuntimeError) and str(error.exc_value) == "Event loop is closed"
        if not late or error.object is not None:
            self._before(error)

    @staticmethod
    def _is_news(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "/orbax/" not in record.pathname + record.getMessage()


quiet = _Quiet()


def context() -> ocp.Context:
    """How Orbax reads and writes a step."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=RECORD)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def root_cause(error: BaseException) -> str:
    """What lies under an error of Orbax, on one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    full = os.strerror(errno.ENOSPC)
    if full in str(error):
        return full  # it comes after several long paths
    return f"{type(error).__name__}: {first_line(error)}"[:200]
