"""A profile of some steps, for TensorBoard (plugin tensorboard-plugin-profile) or XProf."""

from types import TracebackType
from typing import Any, Self

import jax

from vit_jax import paths
from vit_jax.errors import UserError
from vit_jax.run.workdir import Workdir


class Profile:
    """Records steps `first` to `last`, or none, into the run's tensorboard/plugins/profile; a context."""

    def __init__(self, steps: tuple[int, int] | None, folder: Workdir) -> None:
        """Raises UserError for a folder that is on no disk."""
        if steps and paths.in_bucket(folder.path):
            raise UserError("train.profile_steps writes to a disk: profile some steps in a --workdir on one")
        self._steps, self._to, self._records = steps, str(folder.tensorboard), False

    def before(self, step: int) -> None:
        """To be called before the batch of a step is waited for; steps count from 1."""
        if self._steps and not self._records and self._steps[0] <= step <= self._steps[1]:
            self._records = True
            jax.profiler.start_trace(self._to)

    def after(self, step: int, result: Any) -> None:
        """To be called when a step was sent; waits for the `result` of the last one that is recorded."""
        if self._records and self._steps and step >= self._steps[1]:
            jax.block_until_ready(result)
            self._end()

    def _end(self) -> None:
        self._records = False
        jax.profiler.stop_trace()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: Any, trace: TracebackType | None) -> None:
        if self._records:  # the run ends before the last step that was to be recorded
            self._end()
