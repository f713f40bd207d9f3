"""What `train.health` costs: its program beside the step, in turns, on the first batch of a config.

    PYTHONPATH=. python benchmarks/health.py --config configs/quickstart.py
    PYTHONPATH=. python benchmarks/health.py --config configs/vit_ti16.py -- --config.train.batch_size=16

Each number is the median over rounds of CPU or wall seconds; the share is that of a measurement in the steps
between two, at most one in 50. Results: benchmarks/results/health.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from vit_jax.config import from_command_line
from vit_jax.data import sources
from vit_jax.data.loader import Batch
from vit_jax.errors import UserError
from vit_jax.run.health import APART
from vit_jax.run.setup import set_up
from vit_jax.training import mesh as meshes


def seconds(config: str, fields: list[str], rounds: int) -> tuple[float, float]:
    """Of a step and of a measurement, the medians over `rounds` in turns; CPU seconds on CPUs."""
    cfg = from_command_line(config, fields)
    mesh = meshes.make(cfg.device, cfg.fsdp)
    clock = time.process_time if mesh.devices.flat[0].platform == "cpu" else time.perf_counter
    with jax.set_mesh(mesh):
        setup = set_up(cfg, mesh, sources.open_splits(cfg.data))
        like = setup.batch_like()
        make = lambda x: jax.random.randint(jax.random.key(0), x.shape, 0, 2).astype(x.dtype)
        batch: Any = Batch(*(jax.device_put(make(x), x.sharding) for x in like))
        step = setup.lower_step().compile()
        measure = setup.health.lower(*setup.step_arguments()).compile()
        state = setup.init()
        of_step, of_health = [], []
        for _ in range(rounds + 1):
            (state, _), spent = timed(clock, step, state, batch, None, None)
            of_step.append(spent)
            of_health.append(timed(clock, measure, state, batch, None, None)[1])
    return statistics.median(of_step[1:]), statistics.median(of_health[1:])  # the first is slower


def timed(clock: Callable[[], float], program: Any, *arguments: Any) -> tuple[Any, float]:
    """What the program gives, and the seconds that it took."""
    begun = clock()
    result = jax.block_until_ready(program(*arguments))
    return result, clock() - begun


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("fields", nargs="*", help="after --, --config.field=value")
    args = parser.parse_args()
    try:
        step, health = seconds(args.config, args.fields, args.rounds)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    share = health / (APART * step)
    print(f"step {step * 1e3:.2f} ms, health {health * 1e3:.2f} ms: {share:.2%} of the steps, one in {APART}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
