"""The one orchestrator: config and work directory in, trained and evaluated checkpoints out."""

import dataclasses
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.config import Config, differences, parse, to_dict
from vit_jax.data import loader, sources
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.training import job as jobs
from vit_jax.training import mesh as meshes
from vit_jax.training import provenance, refs
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.evaluate import format_metrics
from vit_jax.training.job import Job, Splits
from vit_jax.training.report import Reporter
from vit_jax.training.step import State


class Outcome(NamedTuple):
    """Where a run stands: steps done, its last evaluation, and the signal that ended it early, if one did."""

    step: int
    metrics: dict[str, float]
    signal: int | None


def run(cfg: Config, workdir: Path, *, data: Splits | None = None, accept_change: bool = False) -> Outcome:
    """Train `cfg` in `workdir`, continuing what is there. Raises UserError for what the user can mend.

    `data` replaces the sources that `cfg.data` names. A workdir of another config is refused unless
    `accept_change`. SIGTERM and SIGINT save a checkpoint and end the run early.
    """
    mesh = meshes.make(cfg.device, cfg.fsdp)
    primary = jax.process_index() == 0
    if primary:
        print(f"device: {meshes.describe(mesh)}", flush=True)
    data = data or Splits(*(sources.open_split(cfg.data, train=train) for train in (True, False)))
    with jax.set_mesh(mesh):
        job = jobs.make(cfg, mesh, data)
        claim(workdir, cfg, accept_change=accept_change)
        checkpoints = Checkpoints(workdir / "checkpoints", keep=cfg.train.keep)
        best = Checkpoints(workdir / "best", keep=1)
        state, metrics = _restore(checkpoints, job) or _begin(job, checkpoints.notices)
        with Reporter(workdir, step=int(state.step), steps=job.steps, active=primary) as report:
            loop = _Loop(job, checkpoints, best, report)
            loop.introduce(int(state.step))
            with _signals() as stop:
                outcome = loop.train(state, metrics, stop)
            checkpoints.close()
            best.close()
            report.curves()
            report.say(_conclusion(workdir, outcome))
    return outcome


def claim(workdir: Path, cfg: Config, *, accept_change: bool) -> None:
    """Make `workdir` this config's own. Raises UserError if it is another's, or cannot be written."""
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        changes = differences(parse(json.loads(path.read_text())), cfg) if path.exists() else []
        if changes and not accept_change:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(changes)}): "
                "use another --workdir, or continue it anyway with --config_change=accept"
            )
        if jax.process_index() == 0:
            part = path.with_suffix(".tmp")
            part.write_text(json.dumps(to_dict(cfg), indent=1))
            part.replace(path)
    except OSError as e:
        raise UserError(f"cannot write to --workdir={workdir}: {e.strerror}") from e


@dataclasses.dataclass(frozen=True)
class _Loop:
    job: Job
    checkpoints: Checkpoints
    best: Checkpoints
    report: Reporter

    def introduce(self, step: int) -> None:
        """What is about to happen, after what was noticed on the way here."""
        job, say = self.job, self.report.say
        for notice in (*self.checkpoints.notices, *self.best.notices):
            say(notice)
        model, train = job.spec.model, job.cfg.train
        say(f"model: {build.count(job.abstract.params):,} parameters, {model.classes} classes, {model.dtype}")
        say(f"data: {job.data.train.size:,} training and {job.data.eval.size:,} evaluation examples")
        begins = f"continues after step {step}" if step else "starts"
        epochs = job.steps * train.batch_size / job.data.train.size
        say(f"run: {begins}, ends at step {job.steps} ({epochs:.1f} epochs of batches of {train.batch_size})")

    def train(self, state: State, metrics: dict[str, float], stop: list[int]) -> Outcome:
        """Steps until the end or a signal; saves before it returns."""
        job, cfg = self.job, self.job.cfg.train
        step = saved = int(state.step)
        stream = self._batches(step)
        clock = _Clock(step)
        while step < job.steps and not stop:
            with clock.waiting():
                batch = next(stream)
            state = job.step(state, meshes.to_devices(batch, cfg.batch_size, job.mesh))
            step += 1
            last = step == job.steps
            if last or step % cfg.log_every == 0:
                self._log(state, step, clock)
            if last or (cfg.eval_every and step % cfg.eval_every == 0):
                metrics = self._evaluate(state, step)
                clock.restart(step)
            # After the evaluation: a checkpoint of a step says that all of the step was done and written.
            if last or step % cfg.checkpoint_every == 0:
                self._save(state, step, metrics)
                saved = step
        if saved < step:
            self._save(state, step, metrics)
        return Outcome(step, metrics, stop[0] if step < job.steps else None)

    def _batches(self, step: int) -> Iterator[loader.Batch]:
        job, size = self.job, self.job.cfg.train.batch_size
        rows = meshes.host_rows(size, job.mesh)
        image_hw, seed = job.spec.model.image_hw, job.cfg.seed
        batches = loader.TrainBatches(job.data.train, job.cfg.data, image_hw, size, seed, job.steps, rows)
        return loader.iterate(batches, job.cfg.data, start=step)

    def _log(self, state: State, step: int, clock: "_Clock") -> None:
        loss, top1, _, weight = map(float, jax.device_get(state.window))
        rates = clock.read(step, self.job.cfg.train.batch_size)
        lr = float(jnp.asarray(self.job.schedule(step - 1)))
        values = {"train/loss": loss / weight, "train/top1": top1 / weight, "train/lr": lr, **rates}
        self.report.record(step, values)
        text = f"loss {loss / weight:.4f}  accuracy {top1 / weight:.2%}"
        speed = f"{rates['train/images_per_s']:,.0f} images/s"
        self.report.advance(step, f"step {step}/{self.job.steps}  {text}  {speed}")

    def _evaluate(self, state: State, step: int) -> dict[str, float]:
        """Measure the evaluation split, and keep the parameters if none before were better.

        The running mean is measured beside the parameters; the metrics are of whichever hits more.
        """
        best_metrics, best_params = self._measure(state.params, step, "eval")
        if state.ema is not None:
            metrics, params = self._measure(state.ema, step, "eval_ema")
            if metrics["top1"] > best_metrics["top1"]:
                best_metrics, best_params = metrics, params
        self.report.curves()
        known = self.best.newest_record()
        if known is None or best_metrics["top1"] > known["metrics"]["top1"]:
            self.best.save(step, _record(self.job, best_metrics), params=best_params)
        return best_metrics

    def _measure(self, params: Any, step: int, name: str) -> tuple[dict[str, float], Any]:
        metrics = self.job.evaluate(params, self.job.data.eval, self.job.cfg.data)
        self.report.record(step, {f"{name}/{key}": value for key, value in metrics.items()})
        mean = " of the mean parameters" if name == "eval_ema" else ""
        self.report.say(f"step {step}: evaluation{mean} {format_metrics(metrics)}")
        return metrics, params

    def _save(self, state: State, step: int, metrics: dict[str, float]) -> None:
        self.checkpoints.save(step, _record(self.job, metrics), params=state.params, rest=_rest(state))


class _Clock:
    """Images a second, and the share of the time that was spent waiting for data."""

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def read(self, step: int, batch_size: int) -> dict[str, float]:
        """Rates since the last reading."""
        seconds = time.perf_counter() - self._start
        images = (step - self._step) * batch_size
        rates = {"train/images_per_s": images / seconds, "train/data_wait": self._waited / seconds}
        self.restart(step)
        return rates


def _begin(job: Job, notices: list[str]) -> tuple[State, dict[str, float]]:
    """The state before the first step: fresh, or from the weights that the config names."""
    cfg, spec = job.cfg, job.spec
    if not cfg.init:
        return job.init(), {}
    weights = refs.read_for(
        spec.model, cfg.init, channels=spec.preprocess.channels, posemb_method=cfg.init_posemb
    )
    notices.append(str(weights.report))
    if (weights.preprocess.mean, weights.preprocess.std) != (spec.preprocess.mean, spec.preprocess.std):
        notices.append(
            f"note: init was trained with mean {weights.preprocess.mean}, std {weights.preprocess.std}"
        )
    return job.adopt(weights.params), {}


def _restore(checkpoints: Checkpoints, job: Job) -> tuple[State, dict[str, float]] | None:
    like = job.abstract
    found = checkpoints.restore(params=like.params, rest=_rest(like))
    if found is None:
        return None
    record, trees = found
    step = jax.device_put(jnp.int32(record["step"]), like.step.sharding)
    return State(**({"step": step, "params": trees["params"], "ema": None} | trees["rest"])), record[
        "metrics"
    ]


def _rest(state: State) -> dict[str, Any]:
    """What a checkpoint holds of the state beside parameters and step."""
    rest = {"opt_state": state.opt_state, "window": state.window}
    return rest if state.ema is None else rest | {"ema": state.ema}


def _record(job: Job, metrics: dict[str, float]) -> dict[str, Any]:
    own = {"config": to_dict(job.cfg), "spec": to_dict(job.spec), "steps": job.steps, "metrics": metrics}
    return own | provenance.collect()


def _conclusion(workdir: Path, outcome: Outcome) -> str:
    if outcome.signal:
        name = signal.Signals(outcome.signal).name
        return f"stopped by {name} after step {outcome.step}, saved: the same command continues from here"
    return "\n".join(
        (
            f"done: {format_metrics(outcome.metrics)}",
            f"curves: {workdir}/curves.png, or tensorboard --logdir {workdir}",
            f"use it: python -m vit_jax.cli.predict {workdir} IMAGE",
        )
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that holds SIGTERM or SIGINT once it came; a second one acts as usual."""
    caught: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
