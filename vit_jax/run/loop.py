"""The one orchestrator: config and work directory in, trained and evaluated checkpoints out."""

import dataclasses
import functools
import shlex
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from vit_jax.data import cache, loader, sources
from vit_jax.data.loader import Batch
from vit_jax.data.source import Splits
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.paths import Path
from vit_jax.run import diagnose, distributed, first_state, loggers, origin, patience, pictures, watchdog
from vit_jax.run import sinks as own_sinks
from vit_jax.run.checkpoint import Best, Checkpoints
from vit_jax.run.clock import Clock
from vit_jax.run.evaluation import Evaluations
from vit_jax.run.first_state import Fixed
from vit_jax.run.health import Health
from vit_jax.run.patience import Standing
from vit_jax.run.profile import Profile
from vit_jax.run.report import Reporter, Sink
from vit_jax.run.setup import Setup, set_up
from vit_jax.run.workdir import Workdir
from vit_jax.sections import Config, seen_size
from vit_jax.training import mesh as meshes
from vit_jax.training.evaluate import format_metrics
from vit_jax.training.step import State
from vit_jax.weights.formats import orbax

SENT_AHEAD = 4  # steps: the devices never wait for the host, and batches do not pile up in their memory


class Outcome(NamedTuple):
    """Where a run stands: steps done, its last evaluation, and the signal that ended it early, if one did."""

    step: int
    metrics: dict[str, float]
    signal: int | None


def run(
    cfg: Config,
    workdir: Path,
    *,
    data: Splits | None = None,
    sinks: Sequence[Sink] = (),
    accept_change: bool = False,
    compiled: Callable[[Path], None] = lambda workdir: None,
    started: float | None = None,
) -> Outcome:
    """Train `cfg` in `workdir`, continuing what is there. Raises UserError for what the user can mend.

    `data` replaces the sources that `cfg.data` names; `sinks` are told what the run reports, beside its own.
    A workdir of another config is refused unless `accept_change`. SIGTERM and SIGINT save a checkpoint and
    end the run early. `compiled(workdir)` is called when what the run calls is compiled, and nothing else is
    begun. `started` is when the run's own process began, in seconds of `time.monotonic`: such a process is
    ended if the run stalls; without it a run in one process only says so.
    """
    clock = Clock(started)
    loggers.check(cfg.train.sinks)
    mesh = meshes.make(cfg.device, cfg.fsdp)
    primary = jax.process_index() == 0
    if primary:
        print(f"device: {meshes.describe(mesh)}", flush=True)
    folder = Workdir(workdir)
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(watchdog.watch(clock, cfg.train.stall_minutes, own_process=started is not None))
        data = data or sources.open_splits(cfg.data)
        teacher = first_state.read_teacher(cfg)
        for around in (jax.set_mesh(mesh), folder.room(), _memory_for(cfg)):
            enter(around)
        setup = set_up(cfg, mesh, data, teacher)
        data = _cached(data, setup)
        folder.make(cfg, accept_change=accept_change)
        enter(folder.alone())
        done = orbax.steps_in(folder.checkpoints)
        weights = first_state.read_init(setup) if cfg.init and (not done or cfg.optim.lora_rank) else None
        fixed = first_state.fix(setup, teacher, weights)
        if not done or done[-1] < setup.steps:
            with clock.spent("compiling"):
                setup.compile_ahead(fresh=not (cfg.init or done))
                orbax.compile_digests(first_state.trees(setup, setup.forms.stored))
            compiled(workdir)
        distributed.wait_for_all()
        folder.claim(cfg)  # not before all that can be refused: a corrected command would be another config's
        checkpoints = Checkpoints(folder.checkpoints, keep=cfg.train.keep)
        best = Best(folder.best, cfg.train.best)
        with clock.spent("restoring"):
            state, standing = first_state.begin(checkpoints, setup, weights, fixed)
        step = int(state.step)
        if not step:
            best.begin_anew()
        clock.begin(step, repeated=max(own_sinks.reached(folder.metrics) - step, 0) if primary else 0)
        own = own_sinks.of_run(folder, cfg, step=step, steps=setup.steps) if primary else []
        with Reporter([*own, *sinks] if primary else []) as report:
            evaluate = Evaluations(setup, fixed, data.eval, best, report, clock)
            profile = enter(Profile(cfg.train.profiled() if primary else None, folder))
            health = Health(setup, fixed)
            loop = _Loop(folder, setup, data, fixed, checkpoints, evaluate, report, clock, profile, health)
            loop.introduce(step)
            with distributed.stop_signals() as stop:
                outcome = loop.train(state, standing, stop)
                with clock.spent("saving"):
                    checkpoints.close()
                    best.close()
            report.flush()
            if line := clock.summary():
                report.say(line)
            report.say(_conclusion(folder, outcome, setup.spec.class_names))
    return outcome


def _cached(data: Splits, setup: Setup) -> Splits:
    """The splits with `data.cache_gib` of each kept in memory."""
    size = seen_size(setup.spec.model, setup.spec.preprocess)
    keep = functools.partial(cache.keep, cfg=setup.cfg.data, image_size=size)
    return Splits(keep(data.train, train=True), keep(data.eval, train=False))


@contextmanager
def _memory_for(cfg: Config) -> Iterator[None]:
    """Raises UserError with the knobs that help where the devices' memory does not suffice."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e) and "out of memory" not in str(e).lower():
            raise
        raise UserError(
            f"out of device memory with train.batch_size={cfg.train.batch_size}, "
            f"train.remat={cfg.train.remat}, fsdp={cfg.fsdp}: use "
            f"train.micro_batches={cfg.train.micro_batches * 2}, train.remat=full, a larger fsdp or a "
            "smaller batch; --plan says which of them fits"
        ) from e


@dataclasses.dataclass(frozen=True)
class _Loop:
    folder: Workdir
    setup: Setup
    data: Splits
    fixed: Fixed
    checkpoints: Checkpoints
    evaluate: Evaluations
    report: Reporter
    clock: Clock
    profile: Profile
    health: Health

    def introduce(self, step: int) -> None:
        """Say the notices of set-up, then what the run will do."""
        setup, say = self.setup, self.report.say
        for notice in (*self.checkpoints.notices, *self.evaluate.best.notices):
            say(notice)
        model, train = setup.spec.model, setup.cfg.train
        own, whole = build.count(setup.forms.packed.params), build.count(setup.model_params())
        adapted = (
            f", {own:,} trained with adapters of rank {rank}" if (rank := setup.cfg.optim.lora_rank) else ""
        )
        say(f"model: {whole:,} parameters{adapted}, {model.classes} classes, {model.dtype}")
        for note in dict.fromkeys(source.note() for source in self.data):
            if note:
                say(note)
        say(f"data: {self.data.train.size:,} training and {self.data.eval.size:,} evaluation examples")
        begins = f"continues after step {step}" if step else "starts"
        again = f"; the first {n} steps are repeated" if (n := self.clock.repeated) else ""
        epochs = setup.steps * train.batch_size / self.data.train.size
        at = "at step" if not train.patience else "by step"  # it may stop early
        span = f"ends {at} {setup.steps} ({epochs:.1f} epochs of batches of {train.batch_size})"
        say(f"run: {begins}, {span}{again}")

    def train(self, state: State, standing: Standing, stop: Callable[[int], int | None]) -> Outcome:
        """Steps until the end, one that comes early, or a signal; saves before it returns."""
        setup, cfg = self.setup, self.setup.cfg.train
        step = saved = int(state.step)
        batches = self._batches()
        stream = loader.iterate(batches, setup.cfg.data, start=step)
        sent: deque[jax.Array] = deque()  # whether the run must stop, of steps that may not be done yet
        stopped = None
        last = step == setup.steps or standing.ended(cfg)
        while not last and not (stopped := stop(step)):
            self.profile.before(step + 1)
            with self.clock.spent("data"):
                batch = next(stream)
            if not step:
                self.report.show(1, "first_batch", pictures.tiled(batch.image))
                params = setup.forms.unpack(setup.whole(state.params, self.fixed.base_params))
                origin.write(self.folder, setup.mesh, params, batches.ids(0), batch)
            given = meshes.to_devices(batch, cfg.batch_size, setup.mesh)
            state, halted = setup.step(state, given, *self.fixed[:2])
            step += 1
            self.clock.sent(step)
            self.profile.after(step, halted)
            sent.append(halted)
            if len(sent) > SENT_AHEAD and float(sent.popleft()):
                self._halt(state, standing)
            last = step == setup.steps
            if self._due(step) and float(halted):
                self._halt(state, standing)
            if logged := last or step % cfg.log_every == 0:
                self._log(state, step, given)
            if last or (cfg.eval_every and step % cfg.eval_every == 0):
                standing = self.evaluate(state, step, standing)
                last = last or standing.ended(cfg)
                if last and not logged:
                    self._log(state, step, given)
            # After the evaluation: a checkpoint of a step says that all of the step was done and written.
            if last or step % cfg.checkpoint_every == 0:
                self._save(state, step, standing)
                saved = step
        if sent and float(sent[-1]):  # a run that halted stays so
            self._halt(state, standing)
        if saved < step:
            self._save(state, step, standing)
        if line := patience.message(step, standing.record(cfg)):
            self.report.say(line)
        return Outcome(step, standing.metrics, stopped)

    def _due(self, step: int) -> bool:
        """Whether a step is logged, evaluated or saved."""
        cfg = self.setup.cfg.train
        often = (cfg.log_every, cfg.checkpoint_every, cfg.eval_every)
        return step == self.setup.steps or any(n and step % n == 0 for n in often)

    def _halt(self, state: State, standing: Standing) -> NoReturn:
        """Save the state, which is that before the bad step, and raise UserError with its story."""
        setup, step, size = self.setup, int(state.step), self.setup.cfg.train.batch_size
        state = state._replace(guard=jax.tree.map(jnp.zeros_like, state.guard))
        if step not in orbax.steps_in(self.checkpoints.directory):
            self._save(state, step, standing)
        batches = self._batches()
        batch, ids = meshes.to_devices(batches[step], size, setup.mesh), batches.ids(step)
        params = setup.forms.unpack(setup.whole(state.params, self.fixed.base_params))
        where = diagnose.explain(build.build(setup.spec.model), params, batch, setup.spec.preprocess)
        self.report.say(f"examples of the batch of step {step}: {ids}")
        self.checkpoints.close()
        raise UserError(
            f"step {step} is not finite, or its loss is a spike: {where}; examples {ids[:4]} and more, "
            "all in log.txt; the state before it is saved: lower optim.lr, set optim.clip_norm, or "
            "train.max_skipped to go on without it"
        )

    def _batches(self) -> loader.TrainBatches:
        setup, size = self.setup, self.setup.cfg.train.batch_size
        rows = meshes.host_rows(size, setup.mesh)
        seen, seed = seen_size(setup.spec.model, setup.spec.preprocess), setup.cfg.seed
        return loader.TrainBatches(self.data.train, setup.cfg.data, seen, size, seed, setup.steps, rows)

    def _log(self, state: State, step: int, given: Batch) -> None:
        """Report a step, and the health of the run; `given` is the batch on the devices."""
        loss, top1, top5, weight = map(float, jax.device_get(state.window))
        rates = self.clock.read(self.setup.cfg.train.batch_size)
        lr = float(self.setup.schedule(step - 1))
        skipped = int(state.guard.skipped)
        weight = max(weight, 1.0)  # of skipped steps alone there is nothing to tell
        values = {"train/loss": loss / weight, "train/top1": top1 / weight, "train/lr": lr, **rates}
        values |= {"train/skipped": skipped} if skipped else {}
        vitals, lines = self.health(state, given, step, rates=(top1 / weight, top5 / weight), examples=weight)
        self.report.add(step, values | vitals)
        for line in lines:
            self.report.say(line)

    def _save(self, state: State, step: int, standing: Standing) -> None:
        record = first_state.record(self.setup, standing, self.fixed)
        trees = first_state.trees(self.setup, state)
        with self.clock.spent("saving"):
            self.report.flush()  # a checkpoint of a step says that its metrics are written, too
            self.checkpoints.save(step, record, **trees)


def _conclusion(folder: Workdir, outcome: Outcome, class_names: Sequence[str]) -> str:
    if outcome.signal:
        name = signal.Signals(outcome.signal).name
        return f"stopped by {name} after step {outcome.step}, saved: the same command continues from here"
    path = shlex.quote(str(folder.path))
    return "\n".join(
        (
            f"done: {format_metrics(outcome.metrics, class_names)}",
            f"curves: {folder.curves}, or tensorboard --logdir {path}",
            f"use it: python -m vit_jax.cli.predict {path} IMAGE",
        )
    )
