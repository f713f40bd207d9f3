"""What the train step costs before and beside its arithmetic: compile time, memory, time to the first step.

    PYTHONPATH=. python benchmarks/compile.py depth            # scan: H/14 with 12 and with 32 blocks
    PYTHONPATH=. python benchmarks/compile.py remat            # L/16: temporary memory, and the extra time
    PYTHONPATH=. python benchmarks/compile.py cache            # quickstart: cold and warm compilation cache

`depth` and `remat` compile from shapes alone, so that no weights need to fit; only `--run` steps make arrays.
Compile time is given in CPU-seconds too, of all compiler threads: on a shared machine that is the figure to
trust. Memory is XLA's own account of the compiled program. Results: benchmarks/LOG.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import variants
from vit_jax.sections import Model, Optim

sys.path.insert(0, str(Path(__file__).parent))
from contenders import CLASSES, Batch, trainer  # beside this file

MIB = 2**20


def program(
    size: str, *, image_size: int, batch: int, scan: bool, remat: str = "none", **fields: Any
) -> tuple[Any, Any, Batch]:
    """(train step, shapes of its state, shapes of its batch): AdamW with decay and clipping, 1000 classes."""
    cfg = Model(**variants.model(size) | {"image_size": image_size, "classes": CLASSES} | fields)
    rule = Optim(weight_decay=0.1, clip_norm=1.0, warmup_steps=100)
    update, init = trainer(cfg, rule, scan=scan, remat=remat)
    like = jax.ShapeDtypeStruct
    image = like((batch, *cfg.image_hw, 3), jnp.uint8)
    shapes = Batch(image, like((batch,), jnp.int32), like((batch,), jnp.float32))
    return update, init, shapes


def compiled(update: Any, init: Any, batch: Batch) -> tuple[Any, float, float]:
    """(program, seconds, CPU-seconds) of tracing, lowering and compiling."""
    state = jax.eval_shape(init)
    wall, cpu = time.perf_counter(), time.process_time()
    done = update.lower(state, batch).compile()
    return done, time.perf_counter() - wall, time.process_time() - cpu


def depth(args: argparse.Namespace) -> None:
    """Compile the step at each depth; the ratio is to the first."""
    size, first = args.size or "H/14", None
    for blocks in (12, 32):
        fields = {"depth": blocks, "scan": not args.unrolled, "dtype": args.dtype}
        _, wall, cpu = compiled(*program(size, image_size=args.image_size, batch=args.batch, **fields))
        first = first or (wall, cpu)
        print(
            f"{size} of {blocks} blocks: {wall:.1f} s, {cpu:.1f} CPU-s, "
            f"{wall / first[0]:.2f} and {cpu / first[1]:.2f} times the first",
            flush=True,
        )


def remat(args: argparse.Namespace) -> None:
    """Temporary memory of the step with and without rematerialisation, and the time of a step."""
    size, first = args.size or "L/16", None
    for kind in ("none", "dots", "full"):
        fields = {"remat": kind, "scan": not args.unrolled, "dtype": args.dtype}
        update, init, batch = program(size, image_size=args.image_size, batch=args.batch, **fields)
        done, _, _ = compiled(update, init, batch)
        temporary = done.memory_analysis().temp_size_in_bytes / MIB
        seconds = _seconds(done, init, batch, args.run) if args.run else float("nan")
        first = first or (temporary, seconds)
        print(
            f"{size} remat={kind}: {temporary:.0f} MiB of temporaries, {temporary / first[0]:.2f} of none; "
            f"{seconds:.2f} CPU-s a step, {seconds / first[1]:.2f} of none",
            flush=True,
        )


def _seconds(done: Any, init: Any, like: Batch, steps: int) -> float:
    """The least CPU-seconds of some steps, after one that warms up."""
    state = init()
    batch = Batch(*(jnp.asarray(np.ones(x.shape, x.dtype)) for x in like))
    found = []
    for _ in range(steps + 1):
        start = time.process_time()
        state = jax.block_until_ready(done(state, batch))
        found.append(time.process_time() - start)
    return min(found[1:])


def cache(args: argparse.Namespace) -> None:
    """From the start of `train.py` to the line of its first step, twice with one compilation cache."""
    config = args.config
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        for name in ("cold", "warm"):
            command = [sys.executable, "train.py", "--config", config, "--workdir", f"{folder}/{name}"]
            command += ["--config.train.log_every=1", *args.fields]
            start = time.perf_counter()
            root = Path(__file__).parent.parent
            with subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True) as process:
                marks = _first_lines(process, ("device:", "run:", "step 1/"), start)
                process.kill()
            times = ", ".join(f"{mark} {seconds:.1f} s" for mark, seconds in marks.items())
            between = marks["step 1/"] - marks["device:"]
            print(f"{name}: {times}; from device: to the first step {between:.1f} s", flush=True)


def _first_lines(process: subprocess.Popen[str], wanted: tuple[str, ...], start: float) -> dict[str, float]:
    """{beginning of a line: seconds after `start` of the first such line}, until the last of `wanted`."""
    found: dict[str, float] = {}
    for line in process.stdout or ():
        seconds = time.perf_counter() - start
        found |= {mark: seconds for mark in wanted if line.startswith(mark) and mark not in found}
        if wanted[-1] in found:
            return found
    raise SystemExit(f"the run ended before {wanted[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("depth", "remat", "cache"))
    parser.add_argument("--size", help="as vit_jax.models.variants names them")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--unrolled", action="store_true", help="without train.scan")
    parser.add_argument("--run", type=int, default=0, metavar="STEPS", help="remat: also time so many steps")
    parser.add_argument("--config", default="configs/quickstart.py", help="cache: of this run")
    parser.add_argument("fields", nargs="*", help="cache: after --, --config.field=value")
    args = parser.parse_args()
    {"depth": depth, "remat": remat, "cache": cache}[args.what](args)


if __name__ == "__main__":
    main()
