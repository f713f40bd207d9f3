"""The evaluations of a run: measured, reported, and the best parameters kept."""

import dataclasses
from typing import Any

from vit_jax.data.source import Source
from vit_jax.run import first_state, pictures
from vit_jax.run.checkpoint import Best
from vit_jax.run.clock import Clock
from vit_jax.run.first_state import Fixed
from vit_jax.run.patience import Standing
from vit_jax.run.report import Reporter
from vit_jax.run.setup import Setup
from vit_jax.training.evaluate import format_metrics, score
from vit_jax.training.step import State


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """Called after steps with the state, the step and the standing before it."""

    setup: Setup
    fixed: Fixed
    source: Source
    best: Best
    report: Reporter
    clock: Clock

    def __call__(self, state: State, step: int, standing: Standing) -> Standing:
        """Measure the evaluation split, and keep the parameters if none before were better.

        The running mean is measured beside the parameters; the better of the two gives the metrics.
        """
        train = self.setup.cfg.train
        with self.clock.spent("evaluation"):
            metrics, params = self._measure(state.params, step, "eval"), state.params
            if state.ema is not None:
                of_mean = self._measure(state.ema, step, "eval_ema")
                if score(of_mean, train.best) > score(metrics, train.best):
                    metrics, params = of_mean, state.ema
            self.report.flush()
            standing = standing.after(metrics, train)
            if score(metrics, train.best) > self.best.score:
                record = first_state.record(self.setup, standing, self.fixed)
                with self.clock.spent("saving"):
                    self.best.save(step, record, params=self.setup.forms.unpack(params))
        return standing

    def _measure(self, params: Any, step: int, name: str) -> dict[str, float]:
        names, tag = self.setup.spec.class_names, f"{name}/confusion"
        show = lambda counts_cc: self.report.show(step, tag, pictures.confused(counts_cc, names))
        whole = self.setup.whole(params, self.fixed.base_params)
        metrics = self.setup.evaluate(whole, self.source, self.setup.cfg.data, self.clock.move, show)
        self.report.add(step, {f"{name}/{key}": value for key, value in metrics.items()})
        mean = " of the mean parameters" if name == "eval_ema" else ""
        self.report.say(f"step {step}: evaluation{mean} {format_metrics(metrics, names)}")
        return metrics
