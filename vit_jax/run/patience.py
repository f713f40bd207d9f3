"""What the evaluations of a run came to, and whether more of them are worth waiting for."""

import math
from typing import Any, NamedTuple, Self

from vit_jax.sections import Train
from vit_jax.training.evaluate import score


class Standing(NamedTuple):
    """The evaluations up to a step: the metrics of the last one, the best `train.best`, evaluations since it.

    All of it is in the step's checkpoint: a run that was killed waits as long as one that was not.
    """

    metrics: dict[str, float]
    best: float | None = None
    waited: int = 0

    def after(self, metrics: dict[str, float], cfg: Train) -> Self:
        """The standing with one evaluation more; a metric that is not a number is no better one."""
        value = score(metrics, cfg.best)
        before = -math.inf if self.best is None else score({cfg.best: self.best}, cfg.best)
        if value > before:
            return self._replace(metrics=metrics, best=metrics[cfg.best], waited=0)
        return self._replace(metrics=metrics, waited=self.waited + 1)

    def ended(self, cfg: Train) -> bool:
        """Whether the run stops early."""
        return 0 < cfg.patience <= self.waited

    def record(self, cfg: Train) -> dict[str, Any]:
        """The part of a checkpoint's record that `of_record` reads."""
        waiting = {"metric": cfg.best, "best": self.best, "waited": self.waited, "ended": self.ended(cfg)}
        return {"metrics": self.metrics, "patience": waiting}


def of_record(record: dict[str, Any], cfg: Train) -> Standing:
    """The standing at a checkpoint; one that waited for another metric, or none, begins to wait anew."""
    waiting = record.get("patience", {})
    if waiting.get("metric") != cfg.best:
        return Standing(record["metrics"])
    return Standing(record["metrics"], waiting["best"], waiting["waited"])


def message(step: int, record: dict[str, Any]) -> str:
    """A line if the run of a checkpoint's record stopped early after `step`; else empty."""
    waiting = record.get("patience", {})
    if not waiting.get("ended"):
        return ""
    best = "" if waiting["best"] is None else f" than {waiting['best']:.4f}"
    return (
        f"stopped early after step {step}: the last {waiting['waited']} evaluations had no better "
        f"{waiting['metric']}{best}"
    )
