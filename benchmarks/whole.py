"""A whole training run beside its step alone: what data, evaluation, checkpoints and reports cost.

    PYTHONPATH=. python benchmarks/whole.py --config configs/quickstart.py
    PYTHONPATH=. python benchmarks/whole.py --config configs/vit_ti16.py -- --config.data.name=cifar10

`run` is `train.py` as a user starts it, in a folder of its own: images a second from the first line of its
log, when the step is compiled, to its end, evaluations and checkpoints included. `step` is that step alone,
again and again on its first batch. They take turns, each in a new process; the ratio is of the medians.
Results: benchmarks/results/whole.md.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
from compile import first_lines  # beside this file

from vit_jax.config import from_command_line
from vit_jax.data import loader, sources
from vit_jax.training import host_memory
from vit_jax.training import job as jobs
from vit_jax.training import mesh as meshes
from vit_jax.training.checkpoint import steps_in

ROOT = Path(__file__).parent.parent


def run(config: str, fields: list[str]) -> float:
    """Images a second of a whole run after its first log line."""
    train = from_command_line(config, fields).train
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--config", config, "--workdir", folder, *fields]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            begin, end = f"step {train.log_every}/", "done:"
            seconds = first_lines(process, (begin, end), time.perf_counter())
            process.communicate()
        if process.returncode:
            raise SystemExit(f"the run failed with exit status {process.returncode}")
        last = steps_in(Path(folder) / "checkpoints")[-1]
    if begin not in seconds:
        raise SystemExit(
            f"the run has {last} steps, none after its first log line: set train.log_every lower"
        )
    return (last - train.log_every) * train.batch_size / (seconds[end] - seconds[begin])


def step(config: str, fields: list[str], seconds: float) -> float:
    """Images a second of the run's compiled step on its first batch."""
    cfg = from_command_line(config, fields)
    if host_memory.only_cpu(cfg.device):  # as train.py does
        host_memory.keep_freed()
    mesh = meshes.make(cfg.device, cfg.fsdp)
    data = jobs.Splits(*(sources.open_split(cfg.data, train=train) for train in (True, False)))
    size = cfg.train.batch_size
    with jax.set_mesh(mesh):
        job = jobs.make(cfg, mesh, data)
        rows = meshes.host_rows(size, mesh)
        batches = loader.TrainBatches(data.train, cfg.data, job.spec.model.image_hw, size, cfg.seed, 1, rows)
        batch = meshes.to_devices(batches[0], size, mesh)
        state, _ = jax.block_until_ready(job.step(job.init(), batch))
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            for _ in range(cfg.train.log_every):
                state, _ = job.step(state, batch)
            jax.block_until_ready(state)
            done += cfg.train.log_every
        return done * size / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the step alone in each round")
    parser.add_argument("--step-alone", action="store_true", help="print the step's rate and end")
    parser.add_argument("fields", nargs="*", help="after --, --config.field=value")
    args = parser.parse_args()
    if args.step_alone:
        print(step(args.config, args.fields, args.seconds))
        return
    alone = [sys.executable, __file__, "--step-alone", f"--config={args.config}", f"--seconds={args.seconds}"]
    rates: dict[str, list[float]] = {"step": [], "run": []}
    for _ in range(args.rounds):
        told = subprocess.run(
            [*alone, "--", *args.fields], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        )
        rates["step"].append(float(told.stdout.split()[-1]))
        rates["run"].append(run(args.config, args.fields))
        print(", ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items()), "images/s", flush=True)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"step {middle['step']:.1f}, run {middle['run']:.1f} images/s: {middle['run'] / middle['step']:.3f}"
    )


if __name__ == "__main__":
    main()
