"""A whole training run beside its step alone: what data, evaluation, checkpoints and reports cost.

    PYTHONPATH=. python benchmarks/whole.py --config configs/quickstart.py
    PYTHONPATH=. python benchmarks/whole.py --config configs/vit_ti16.py -- --config.data.name=cifar10

`run` is `train.py` as a user starts it, in a folder of its own: images a second from the first line of its
log, when the step is compiled, to its last, evaluations and checkpoints included. `step` is that step alone,
again and again on its first batch. Each is a process; one is stopped while the other has its turn of some
seconds, so that what else the machine does slows both down alike. Both have found their programs in the
compilation cache when they begin, as `train.py` sees to. Results: benchmarks/results/whole.md.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import NoReturn

import jax

from vit_jax.config import from_command_line
from vit_jax.data import loader, sources
from vit_jax.run import cpu, loop
from vit_jax.run.setup import set_up
from vit_jax.training import mesh as meshes
from vit_jax.weights.formats.orbax import steps_in

ROOT = Path(__file__).parent.parent
KEEP_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # programs, as train.py does


class Timed:
    """A process that goes on in its turns only, and the seconds of those after which it wrote each line."""

    def __init__(self, *command: str, cache: str) -> None:
        self.lines: list[tuple[float, str]] = []
        self._before, self._since = 0.0, time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache} | KEEP_ALL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self.lines.append((self._before + time.perf_counter() - self._since, line))

    def at(self, beginning: str) -> float | None:
        """Seconds after which the first such line was written, None before."""
        return next((seconds for seconds, line in self.lines if line.startswith(beginning)), None)

    def turn(self, seconds: float) -> bool:
        """Let it go on for so long; whether it has more to do. Raises SystemExit if it failed."""
        if self._process.poll() is None:
            self._since = time.perf_counter()
            os.killpg(self._process.pid, signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGSTOP)
            self._before += time.perf_counter() - self._since
        if self._process.returncode:
            raise SystemExit(f"the run failed with exit status {self._process.returncode}")
        return self._process.returncode is None

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def compare(config: str, fields: list[str], seconds: float) -> tuple[float, float]:
    """Images a second of the step alone, and of a whole run after its first log line."""
    train = from_command_line(config, fields).train
    begin, end = f"step {train.log_every}/", "done:"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workdir, *caches = (f"{folder}/{name}" for name in ("run", "cache_of_run", "cache_of_step"))
        run = Timed("train.py", "--config", config, "--workdir", workdir, *fields, cache=caches[0])
        stack.callback(run.kill)
        while run.at(begin) is None:
            if not run.turn(0.1):
                raise SystemExit("the run ended before its first log line: set train.log_every lower")
        step = Timed(__file__, "--step-alone", "--config", config, "--", *fields, cache=caches[1])
        stack.callback(step.kill)
        while step.at("step") is None:
            step.turn(0.1)
        going = True
        while going:
            step.turn(seconds)
            going = run.turn(seconds)
        last = steps_in(Path(workdir) / "checkpoints")[-1]
        rows = [seconds for seconds, line in step.lines if line.startswith("step")]
        steps_alone, seconds_alone = len(rows) - 1, rows[-1] - rows[0]
    begun, ended = run.at(begin), run.at(end)
    if begun is None or ended is None:
        raise SystemExit("the run was stopped before its end")
    print(*(line for seconds, line in run.lines if seconds >= ended and line.startswith(end)), end="")
    return (
        steps_alone * train.batch_size / seconds_alone,
        (last - train.log_every) * train.batch_size / (ended - begun),
    )


def step_alone(config: str, fields: list[str]) -> NoReturn:
    """Take the run's compiled step on its first batch until killed, and write a line after each."""
    cfg = from_command_line(config, fields)
    compiled = cpu.after_compiling(cfg.device)  # as train.py does
    mesh = meshes.make(cfg.device, cfg.fsdp)
    data = sources.open_splits(cfg.data)
    size = cfg.train.batch_size
    with jax.set_mesh(mesh):
        setup = set_up(cfg, mesh, data)
        setup.compile_ahead(fresh=True)
        compiled(Path("step_alone"))
        rows = meshes.host_rows(size, mesh)
        batches = loader.TrainBatches(
            data.train, cfg.data, setup.spec.model.image_hw, size, cfg.seed, 1, rows
        )
        batch, state = meshes.to_devices(batches[0], size, mesh), setup.init()
        sent: deque[jax.Array] = deque()
        while True:
            state, halted = setup.step(state, batch, None)
            sent.append(halted)
            if len(sent) > loop.SENT_AHEAD:
                jax.block_until_ready(sent.popleft())
                print("step", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--step-alone", action="store_true", help="be the process that takes steps alone")
    parser.add_argument("fields", nargs="*", help="after --, --config.field=value")
    args = parser.parse_args()
    if args.step_alone:
        step_alone(args.config, args.fields)
    step, run = compare(args.config, args.fields, args.seconds)
    print(f"step {step:.1f}, run {run:.1f} images/s: {run / step:.3f}")


if __name__ == "__main__":
    main()
