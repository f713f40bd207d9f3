"""The checkpoints of a run: which are kept, which one is used, and what becomes of unsound ones."""

import math
from contextlib import ExitStack
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vit_jax import paths
from vit_jax.errors import UserError
from vit_jax.paths import Path
from vit_jax.run.workdir import Workdir
from vit_jax.training.evaluate import score
from vit_jax.weights.formats import orbax


class Checkpoints:
    """A folder of numbered steps, of which the newest `keep` are kept."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        self.directory = paths.absolute(directory)
        self.notices = [
            f"checkpoint {step} was interrupted while it was saved: ignored"
            for step in orbax.interrupted_in(self.directory)
        ]
        self._quiet = ExitStack()
        self._quiet.enter_context(orbax.quiet)
        policy: Any = ocp.training.preservation_policies.LatestN(keep)
        self._orbax = ocp.training.Checkpointer(
            str(self.directory),
            context=orbax.context(),
            cleanup_tmp_directories=True,
            preservation_policy=policy,
        )

    def save(self, step: int, record: dict[str, Any], **trees: Any) -> None:
        """Copy the trees off the devices, then write in the background.

        Raises UserError if this or an earlier write fails.
        """
        whole = {**trees, orbax.RECORD: orbax.record_of(step, record, trees)}
        try:
            self._orbax.save_checkpointables_async(step, whole, force=True)
        except Exception as e:
            raise _save_failed(self.directory, e) from e

    def restore(self, **abstract: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(record, trees) of the newest sound step, or None. Unsound ones are set aside and noticed.

        Raises UserError if a step is sound, but holds other arrays than `abstract`.
        """
        for found in reversed(self._orbax.checkpoints):
            try:
                record = orbax.read_record(self.directory / str(found.step))
                trees = orbax.read_trees(self.directory / str(found.step), record, **abstract)
            except orbax.OtherState:
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
            with self._quiet:
                self._orbax.close()
        except Exception as e:
            raise _save_failed(self.directory, e) from e

    def _set_aside(self, step: int) -> None:
        # Moved, so that the step can be saved again; not deleted, so that it can be looked at.
        _together(f"all have seen {step}")
        if jax.process_index() == 0:
            unsound = Workdir(self.directory.parent).unsound
            orbax.set_aside(self.directory / str(step), unsound / f"{self.directory.name}-{step}")
        _together(f"set aside {step}")
        self._orbax.reload()


class Best(Checkpoints):
    """The step of the best `metric`; one that cannot be used is set aside with a notice.

    `score` is its metric as `training.evaluate.score` has it, lower than any if there is no step.
    """

    def __init__(self, directory: Path, metric: str = "top1") -> None:
        super().__init__(directory, keep=1)
        self.score, self._metric = -math.inf, metric
        unusable = {}
        for step in orbax.steps_in(directory):
            try:
                self.score = _score(directory / str(step), metric)
            except UserError as e:
                unusable[step] = str(e)
        self._forget(unusable)

    def begin_anew(self) -> None:
        """Set aside a best left by a run whose checkpoints are gone."""
        why = "checkpoint {} was left by a run whose checkpoints are gone"
        self._forget(
            {step: why.format(self.directory / str(step)) for step in orbax.steps_in(self.directory)}
        )

    def _forget(self, unusable: dict[int, str]) -> None:
        for step, why in unusable.items():
            self.score = -math.inf
            self._set_aside(step)
            self.notices.append(f"{why}: set aside")

    def save(self, step: int, record: dict[str, Any], **trees: Any) -> None:
        """Save as any checkpoint; it replaces the best before it."""
        super().save(step, record, **trees)
        self.score = score(record["metrics"], self._metric)


def _score(step_dir: Path, metric: str) -> float:
    """The metric recorded with a step. Raises UserError if the step has no parameters or no such record."""
    record = orbax.read_record(step_dir)
    if not (step_dir / orbax.PARAMS).is_dir():
        raise UserError(f"checkpoint {step_dir} has no {orbax.PARAMS}")
    try:
        return score({metric: float(record["metrics"][metric])}, metric)
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"checkpoint {step_dir} has no recorded {metric}") from e


def _together(where: str) -> None:
    """Barrier across processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _save_failed(directory: Path, error: Exception) -> UserError:
    return UserError(
        f"cannot save to {directory} ({orbax.root_cause(error)}): earlier checkpoints are intact"
    )
