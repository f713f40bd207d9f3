"""Checkpoints on Orbax: what is in them, how they are checked, and which one is used.

A step holds `params`, `rest` (optimizer state, window sums) and `record`, a JSON object that makes the
parameters usable on their own: config, spec, class names, versions, and a digest a leaf. Orbax ignores saves
that a kill interrupted; the digests catch what it does not notice: changed bytes in array data.
"""

import errno
import functools
import logging
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vit_jax.errors import UserError
from vit_jax.run.workdir import Workdir

PARAMS, REST, RECORD = "params", "rest", "record"
OWN = {"step", "shapes", "digests"}  # what `Checkpoints.save` adds to a record


class OtherState(UserError):
    """A checkpoint of another model or optimizer: sound, but not what was asked for."""


class Checkpoints:
    """A folder of numbered steps, of which the newest `keep` are kept."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        self.directory = directory.absolute()
        self.notices = [
            f"checkpoint {p.name.split('.')[0]} was interrupted while it was saved: ignored"
            for p in sorted(self.directory.glob("*.orbax-checkpoint-tmp"))
        ]
        policy: Any = ocp.training.preservation_policies.LatestN(keep)
        self._orbax = ocp.training.Checkpointer(
            str(self.directory), context=_context(), cleanup_tmp_directories=True, preservation_policy=policy
        )

    def save(self, step: int, record: dict[str, Any], **trees: Any) -> None:
        """Copy the trees off the devices, then write in the background.

        Raises UserError if this or an earlier write fails.
        """
        own = {
            "step": step,
            "shapes": {name: shapes(tree) for name, tree in trees.items()},
            "digests": {name: digest(tree) for name, tree in trees.items()},
        }
        try:
            self._orbax.save_checkpointables_async(step, {**trees, RECORD: record | own}, force=True)
        except Exception as e:
            raise _save_failed(self.directory, e) from e

    def restore(self, **abstract: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(record, trees) of the newest sound step, or None. Unsound ones are set aside and noticed.

        Raises UserError if a step is sound, but holds other arrays than `abstract`.
        """
        for found in reversed(self._orbax.checkpoints):
            try:
                record, trees = read(self.directory / str(found.step), **abstract)
            except OtherState:
                raise
            except UserError as e:
                self._set_aside(found.step)
                self.notices.append(f"{e}: using the one before")
            else:
                return record, trees
        return None

    def close(self) -> None:
        """Wait for the writes. Raises UserError if one failed."""
        try:
            self._orbax.close()
        except Exception as e:
            raise _save_failed(self.directory, e) from e

    def _set_aside(self, step: int) -> None:
        # Moved, so that the step can be saved again; not deleted, so that it can be looked at.
        _together(f"all have seen {step}")
        if jax.process_index() == 0:
            target = Workdir(self.directory.parent).unsound / f"{self.directory.name}-{step}"
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(target)
        _together(f"set aside {step}")
        self._orbax.reload()


class Best(Checkpoints):
    """The step with the best top-1; one that cannot be used is set aside with a notice."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, keep=1)
        self.top1 = -math.inf
        unusable = {}
        for step in steps_in(directory):
            try:
                self.top1 = _top1(directory / str(step))
            except UserError as e:
                unusable[step] = str(e)
        self._forget(unusable)

    def begin_anew(self) -> None:
        """Set aside a best left by a run whose checkpoints are gone."""
        why = "checkpoint {} was left by a run whose checkpoints are gone"
        self._forget({step: why.format(self.directory / str(step)) for step in steps_in(self.directory)})

    def _forget(self, unusable: dict[int, str]) -> None:
        for step, why in unusable.items():
            self.top1 = -math.inf
            self._set_aside(step)
            self.notices.append(f"{why}: set aside")

    def save(self, step: int, record: dict[str, Any], **trees: Any) -> None:
        """Save as any checkpoint; it replaces the best before it."""
        super().save(step, record, **trees)
        self.top1 = record["metrics"]["top1"]


def _top1(step_dir: Path) -> float:
    """Top-1 recorded with a step. Raises UserError if the step has no parameters or no such record."""
    record = read_record(step_dir)
    if not (step_dir / PARAMS).is_dir():
        raise UserError(f"checkpoint {step_dir} has no {PARAMS}")
    try:
        return float(record["metrics"]["top1"])
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"checkpoint {step_dir} has no recorded top-1") from e


def _together(where: str) -> None:
    """Barrier across processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def steps_in(directory: Path) -> list[int]:
    """Numbers of the finished steps of a folder, ascending."""
    number = re.compile(r"0|[1-9][0-9]*")
    return sorted(int(p.name) for p in directory.glob("*") if number.fullmatch(p.name) and p.is_dir())


def read_record(step_dir: Path) -> dict[str, Any]:
    """The record of one step. Raises UserError if there is none that can be read."""
    try:
        with _context():
            record = ocp.load_checkpointables(str(step_dir.absolute()), {RECORD: None})[RECORD]
    except Exception as e:
        raise UserError(f"checkpoint {step_dir} cannot be read ({_root_cause(e)})") from e
    if not isinstance(record, dict) or not record.keys() >= OWN:
        raise UserError(f"checkpoint {step_dir} cannot be read (its record lacks {', '.join(sorted(OWN))})")
    return record


def read(step_dir: Path, **abstract: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(record, trees) of one step, each leaf checked. Raises UserError if anything is missing or changed."""
    record = read_record(step_dir)
    for name, tree in abstract.items():
        _check_shapes(step_dir, name, stored=record["shapes"][name], wanted=shapes(tree))
    try:
        with _context():
            trees = ocp.load_checkpointables(str(step_dir.absolute()), abstract)
    except Exception as e:
        raise UserError(f"checkpoint {step_dir} cannot be read ({_root_cause(e)})") from e
    for name, tree in trees.items():
        wanted, got = record["digests"][name], digest(tree)
        changed = [path for path in wanted if wanted[path] != got.get(path)]
        if changed:
            raise UserError(
                f"checkpoint {step_dir} has changed on disk: {name}{changed[0]} has another digest"
            )
    return record, trees


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


@functools.cache
def _errors_once() -> None:
    """Leave a failed file to the exception: Orbax would also log it many times.

    It logs each error that it raises, and closes event loops that results of other files still come to,
    which Python reports as errors that nobody can catch.
    """
    logging.getLogger("absl").addFilter(
        lambda record: record.levelno < logging.ERROR or "/orbax/" not in record.pathname
    )
    before = sys.unraisablehook

    def hook(error: Any) -> None:
        late = isinstance(error.exc_value, RuntimeError) and str(error.exc_value) == "Event loop is closed"
        if not late or error.object is not None:
            before(error)

    sys.unraisablehook = hook


def _context() -> ocp.Context:
    _errors_once()
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=RECORD)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _save_failed(directory: Path, error: Exception) -> UserError:
    return UserError(f"cannot save to {directory} ({_root_cause(error)}): earlier checkpoints are intact")


def _root_cause(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    full = os.strerror(errno.ENOSPC)
    if full in str(error):
        return full  # it comes after several long paths
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:200]
