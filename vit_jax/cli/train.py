"""Train or fine-tune: flags -> configs -> run."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, cast

from vit_jax import config, fields, paths, sections
from vit_jax.cli.common import make_parser, nonempty_path, run_command
from vit_jax.errors import UserError
from vit_jax.run import clock, cpu, sweep_points
from vit_jax.run import target as targets

COMPILATION_CACHE = Path.home() / ".cache" / "vit_jax"  # JAX_COMPILATION_CACHE_DIR names another
EXAMPLES = """examples:
  python train.py --config configs/quickstart.py --workdir runs/quickstart
  python train.py --config configs/vit_b16.py --workdir runs/b16 --config.optim.lr=3e-4
  python train.py --config configs/cifar10.py:finetune --workdir runs/c10
  python train.py --config configs/from_init.py:augreg/B_16 --config.data.dir=pets --workdir runs/pets
  python train.py --config configs/vit_l16.py --plan
  python train.py --config configs/vit_l16.py --plan --target v5e-64 --best
  python train.py --config configs/quickstart.py --workdir runs/sweep --sweep config.optim.lr=1e-3,3e-3
  python train.py --rerun runs/quickstart --workdir runs/again

the same command again continues a run that was stopped.

fields of a config:
"""


def main() -> int:
    """Parse the command line and do what it says. Returns the exit code: 128 + n after signal n."""
    cpu.take_up_signals()
    started = clock.process_start()
    args, points, configs = parse(sys.argv[1:])
    workdir = cast(paths.Path, args.workdir)

    if args.target:
        targets.prepare()

    import jax  # after parsing: --help stays quick

    from vit_jax.run import distributed, loop, sweep

    compiled = cpu.after_compiling(configs[0].device)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(COMPILATION_CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if args.target:
        jax.config.update("jax_enable_compilation_cache", False)  # it cannot keep programs for chips not here
        return _plan(configs[0], args)
    found = distributed.join(_address(args), timeout_s=args.join_timeout)
    if jax.process_index() == 0:
        print(found, flush=True)
    if args.plan:
        return _plan(configs[0], args)
    if args.sweep:
        runs = list(zip(points, configs, strict=True))
        ended_by = sweep.run(runs, workdir, index=args.sweep_index, compiled=compiled, started=started)
    else:
        accept = args.config_change == "accept"
        outcome = loop.run(configs[0], workdir, accept_change=accept, compiled=compiled, started=started)
        ended_by = outcome.signal
    return 128 + ended_by if ended_by else 0


def parse(words: list[str]) -> tuple[argparse.Namespace, list[sweep_points.Point], list[sections.Config]]:
    """The arguments of a command line, and the runs that it asks for with their configs. Raises UserError."""
    parser = make_parser(__doc__, EXAMPLES + fields.describe(sections.Config))
    _add_arguments(parser)
    args, rest = parser.parse_known_args(words)
    _check(args)
    points = sweep_points.points(args.sweep)
    return args, points, [_config(args, [*rest, *point.arguments]) for point in points]


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for arguments that do not go together."""
    if args.workdir is None and not args.plan:
        raise UserError("--workdir is missing: the folder of the run, continued if it exists")
    if args.plan and args.sweep:
        raise UserError("--plan describes one run: leave --sweep out")
    if args.sweep_index is not None and not args.sweep:
        raise UserError("--sweep_index requires --sweep")
    planned = (args.json, args.device_memory_gib, args.target, args.best, args.examples, args.classes)
    if not args.plan and any(value not in (None, False) for value in planned):
        raise UserError(
            "--json, --device_memory_gib, --target, --best, --examples and --classes require --plan"
        )
    if args.best and not args.target:
        raise UserError("--best requires --target, whose compiler estimates a step: try --target v5e-16")
    if args.best and args.device_memory_gib:
        raise UserError("--best takes the memory of --target's chips: leave --device_memory_gib out")
    sizes = [n for n in (args.examples, args.classes) if n is not None]
    if len(sizes) == 1 or any(n < 1 for n in sizes):
        raise UserError("--examples and --classes go together, and are at least 1")
    if args.join_timeout < 1:
        raise UserError(f"--join_timeout={args.join_timeout} must be at least 1 second")
    if args.device_memory_gib is not None and not 0 < args.device_memory_gib < float("inf"):
        raise UserError(f"--device_memory_gib={args.device_memory_gib} must be above 0, and finite")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="FILE[:ARG], a Python config file")
    parser.add_argument("--rerun", metavar="RUN", help="instead of --config: that of this run, or step of it")
    parser.add_argument("--workdir", type=nonempty_path, help="folder of the run, continued if it exists")
    parser.add_argument(
        "--config_change",
        choices=("refuse", "accept"),
        default="refuse",
        help="what to do if the workdir was made by another config (default: refuse)",
    )
    planning = parser.add_argument_group("before training")
    planning.add_argument("--plan", action="store_true", help="say what the run would be and need, and stop")
    planning.add_argument(
        "--target",
        metavar="SLICE",
        help="with --plan: of TPUs, as v5e-16 or 2xv6e-256 (extra aot)",
    )
    planning.add_argument(
        "--best", action="store_true", help="with --target: try what fits it, and rank by estimated speed"
    )
    planning.add_argument("--examples", type=int, help="with --plan: size of training data that is not here")
    planning.add_argument("--classes", type=int, help="with --examples: classes of that data")
    planning.add_argument("--device_memory_gib", type=float, help="memory of a device, if it does not say")
    planning.add_argument("--json", action="store_true", help="with --plan: one JSON object")
    many = parser.add_argument_group("many runs", "each in a folder of its own under --workdir")
    many.add_argument(
        "--sweep", action="append", default=[], help="config.field=value,value or a file of such lines"
    )
    many.add_argument("--sweep_index", type=int, help="only this run of the grid, from 0: for array jobs")
    several = parser.add_argument_group(
        "several processes", "TPU slices, GKE, SLURM, MPI and Kubernetes are found without the first three"
    )
    several.add_argument("--coordinator", help="HOST:PORT of process 0")
    several.add_argument("--process_id", type=int, help="which process this is, from 0")
    several.add_argument("--processes", type=int, help="how many there are")
    several.add_argument(
        "--join_timeout",
        type=int,
        default=300,
        metavar="SECONDS",
        help="for all of them to start (default: 300)",
    )


def _config(args: argparse.Namespace, overrides: list[str]) -> sections.Config:
    """The config of --config or --rerun with the overrides applied. Raises UserError."""
    if (args.config is None) == (args.rerun is None):
        raise UserError("one of --config FILE and --rerun RUN is needed: try --config configs/quickstart.py")
    if args.config:
        return config.from_command_line(args.config, overrides)
    from vit_jax.run import rerun

    return config.apply(rerun.read_config(args.rerun), overrides)


def _plan(cfg: sections.Config, args: argparse.Namespace) -> int:
    from vit_jax.data import sources
    from vit_jax.run import plan, search

    target = targets.find(args.target) if args.target else None
    if args.examples:
        data = sources.absent(args.examples, args.classes)
    elif target and cfg.data.name in sources.PUBLISHED:
        data = sources.absent(*sources.PUBLISHED[cfg.data.name])
    else:
        data = sources.open_splits(cfg.data)
    if args.best and target:
        ranked = search.best(cfg, data, target, say=lambda line: print(line, file=sys.stderr, flush=True))
        print(json.dumps(search.rows(ranked)) if args.json else search.show(ranked, target))
        return 0
    limit = int(args.device_memory_gib * plan.GIB) if args.device_memory_gib else None
    planned = plan.make(cfg, data, limit_bytes=limit, target=target)
    print(json.dumps(planned._asdict()) if args.json else plan.show(planned))
    return 0


def _address(args: argparse.Namespace) -> Any:
    """(coordinator, process id, processes), or None if none is given. Raises UserError for some of them."""
    given = (args.coordinator, args.process_id, args.processes)
    if given.count(None) not in (0, 3):
        raise UserError("--coordinator, --process_id and --processes go together: give all three or none")
    if args.coordinator and not args.coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={args.coordinator} has no port: give host:port of process 0")
    return None if None in given else given


if __name__ == "__main__":
    sys.exit(run_command(main))
