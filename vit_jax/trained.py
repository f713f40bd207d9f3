"""`vit_jax.train`: a whole run from Python, and what it leaves."""

import dataclasses
import os
from collections.abc import Sequence

from vit_jax import paths
from vit_jax.data.source import Splits
from vit_jax.loaded import Loaded, load
from vit_jax.paths import Path
from vit_jax.run import loop
from vit_jax.run.report import Sink
from vit_jax.sections import Config


@dataclasses.dataclass(frozen=True)
class Run:
    """A run in `workdir`: the steps done, and its last evaluation: `evaluate.summarise`."""

    workdir: Path
    step: int
    metrics: dict[str, float]

    def load(self) -> Loaded:
        """The model of the best evaluation, as `vit_jax.load(workdir)` gives it."""
        return load(self.workdir)


def train(
    cfg: Config, workdir: str | os.PathLike[str], *, data: Splits | None = None, sinks: Sequence[Sink] = ()
) -> Run:
    """Train `cfg` in `workdir`, in this process, continuing what is there.

    `data` replaces the sources that `cfg.data` names. Each of `sinks` also gets the run's metrics and log
    lines. In the main thread Ctrl-C saves and ends the run early, and the same call continues it; signal
    handlers and loggers are left as they were. Raises UserError for what the user can mend.
    """
    folder = paths.of(workdir)
    outcome = loop.run(cfg, folder, data=data, sinks=sinks)
    return Run(folder, outcome.step, outcome.metrics)
