"""Images a second of inference and of the train step, sizes, dtypes and optimizers side by side in one run.

    PYTHONPATH=. python benchmarks/step.py                                       # Ti/16, table
    PYTHONPATH=. python benchmarks/step.py --sizes S/16,B/16 --dtypes bfloat16 --batch 64 --json

Runs on whatever device jax finds, and needs only jax, flax, optax, and numpy.
Contenders take turns round by round and each figure is the median of its rounds, so that other load falls on
all alike. On a CPU the figure to trust is images a CPU-second (of all threads of this process); `--one-core`
keeps XLA to one thread. Model FLOP utilisation is what the products of the model need (two a
multiply-accumulate, three forward passes a train step) as a part of the rate of one square matrix product of
the same dtype, a contender of the same rounds. Peak memory is XLA's own account of the compiled program.

What was tried and measured: benchmarks/LOG.md.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import build, variants
from vit_jax.sections import Model, Optim, Preprocess
from vit_jax.training import optim, step

INFERENCE = "inference"
CLASSES = 1000
PRODUCT_SIDE = 2048  # large enough for the best rate of the product, on a CPU core well under a second
COLUMNS = ("name", "images_s", "images_cpu_s", "ratio", "mfu", "compile_s", "peak_mib")


class Batch(NamedTuple):
    """What `train_step` reads."""

    image: jax.Array
    label: jax.Array
    weight: jax.Array


@dataclasses.dataclass
class Contender:
    """A compiled program that `turn` runs once, and its seconds."""

    name: str
    flops: float
    images: int
    turn: Callable[[], None]
    compile_s: float = 0.0
    peak_bytes: int = 0
    wall_s: list[float] = dataclasses.field(default_factory=list)
    cpu_s: list[float] = dataclasses.field(default_factory=list)


def forward_flops(cfg: Model) -> float:
    """Two times the multiply-accumulates of an image: patches, projections, attention, MLPs and head."""
    patches = cfg.grid_hw[0] * cfg.grid_hw[1]
    tokens = patches + cfg.class_token + cfg.distill_token + cfg.registers
    d, hidden = cfg.width, cfg.mlp_width * (3 if cfg.mlp == "swiglu" else 2)
    mixing = tokens * 4 * d * d + 2 * tokens * tokens * d
    if cfg.family == "mixer":
        mixing = 2 * tokens * d * cfg.token_width
    block = mixing + tokens * d * hidden
    return 2.0 * (patches * cfg.patch_size**2 * 3 * d + cfg.depth * block + d * cfg.classes)


def contender(size: str, dtype: str, mode: str, *, image_size: int, batch: int, depth: int) -> Contender:
    """One program of the model, compiled and warm; `depth` 0 is the size's own."""
    fields = variants.model(size)
    fields |= {"image_size": image_size, "depth": depth or fields["depth"]}
    cfg = Model(**fields, classes=CLASSES, dtype=dtype)
    if cfg.stem_width:
        raise SystemExit(f"{size}: the stem's convolutions are not counted: give a ViT or a Mixer")
    model = build.build(cfg)
    init = functools.partial(build.init, model, image_hw=cfg.image_hw, channels=3)
    params = jax.jit(init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    data = Batch(
        jnp.asarray(rng.integers(0, 256, (batch, *cfg.image_hw, 3)), jnp.uint8),
        jnp.asarray(rng.integers(0, CLASSES, batch), jnp.int32),
        jnp.ones(batch, jnp.float32),
    )
    name, flops = f"{size} {dtype} {mode}", batch * forward_flops(cfg)
    if mode == INFERENCE:
        apply = lambda params, image: model.apply({"params": params}, step.normalise(image, Preprocess()))
        return _compiled(name, flops, batch, jax.jit(apply), (params, data.image), carries=False)
    optimizer = optim.make(Optim(name=mode), 1_000_000)
    update = functools.partial(
        step.train_step, model=model, optimizer=optimizer, preprocess=Preprocess(), seed=0, log_every=50
    )
    state = jax.jit(lambda params: step.init_state(params, optimizer))(params)
    return _compiled(name, 3 * flops, batch, jax.jit(update, donate_argnums=0), (state, data), carries=True)


def product(dtype: str) -> Contender:
    """A square matrix product: the rate that utilisation is a part of."""
    a = jnp.full((PRODUCT_SIDE, PRODUCT_SIDE), 0.5, dtype)
    return _compiled(f"product {dtype}", 2.0 * PRODUCT_SIDE**3, 0, jax.jit(jnp.matmul), (a, a), carries=False)


def _compiled(
    name: str, flops: float, images: int, function: Any, arguments: tuple[Any, ...], *, carries: bool
) -> Contender:
    """`function` compiled ahead and run once; with `carries`, its result is its next first argument."""
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    compile_s = time.perf_counter() - start
    holder = list(arguments)

    def turn() -> None:
        result = jax.block_until_ready(program(*holder))
        if carries:
            holder[0] = result

    turn()
    return Contender(name, flops, images, turn, compile_s, _peak_bytes(program))


def _peak_bytes(program: Any) -> int:
    """Arguments, results and temporaries, what is donated once; 0 where XLA keeps no account."""
    m = program.memory_analysis()
    if m is None:
        return 0
    return m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes


def measure(contenders: Sequence[Contender], rounds: int) -> None:
    """Every contender once a round, in turn."""
    for _ in range(rounds):
        for c in contenders:
            wall, cpu = time.perf_counter(), time.process_time()
            c.turn()
            c.wall_s.append(time.perf_counter() - wall)
            c.cpu_s.append(time.process_time() - cpu)


def rows(contenders: Sequence[Contender], products: dict[str, Contender]) -> list[dict[str, Any]]:
    """A row of figures each; `ratio` is to the first of the same mode, `mfu` to the product of its dtype."""
    on_cpu = jax.default_backend() == "cpu"
    seconds = lambda c: statistics.median(c.cpu_s if on_cpu else c.wall_s)
    first: dict[str, float] = {}
    table = []
    for c in contenders:
        _, dtype, mode = c.name.split()
        rate, peer = c.images / seconds(c), products[dtype]
        table.append(
            {
                "name": c.name,
                "images_s": c.images / statistics.median(c.wall_s),
                "images_cpu_s": rate if on_cpu else None,
                "ratio": rate / first.setdefault(mode, rate),
                "mfu": (c.flops / seconds(c)) / (peer.flops / seconds(peer)),
                "compile_s": c.compile_s,
                "peak_mib": c.peak_bytes / 2**20,
            }
        )
    return table


def text(table: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    cell = lambda v: "" if v is None else v if isinstance(v, str) else f"{v:.3g}" if v < 100 else f"{v:.0f}"
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([cell(row[c]) for c in COLUMNS] for row in table)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    args = _arguments()
    if args.one_core:  # read by XLA when the first array is made
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    dtypes = args.dtypes.split(",")
    contenders = [
        contender(size, dtype, mode, image_size=args.image_size, batch=args.batch, depth=args.depth)
        for size in args.sizes.split(",")
        for dtype in dtypes
        for mode in args.modes.split(",")
    ]
    products = {dtype: product(dtype) for dtype in dtypes}
    measure([*contenders, *products.values()], args.rounds)
    device = jax.devices()[0]
    head = {"device": device.device_kind, "jax": jax.__version__, "image_size": args.image_size}
    head |= {"batch": args.batch, "rounds": args.rounds}
    head["product_gflop_s"] = {
        d: c.flops / statistics.median(c.cpu_s if device.platform == "cpu" else c.wall_s) / 1e9
        for d, c in products.items()
    }
    table = rows(contenders, products)
    if args.json:
        print(json.dumps({**head, "rows": table}))
    else:
        print(f"{json.dumps(head)}\n{text(table)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="Ti/16", help="as vit_jax.models.variants names them, with commas")
    parser.add_argument("--modes", default="inference,sgd,adamw", help="inference, or an optimizer's name")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--depth", type=int, default=0, help="blocks, for a quick look; 0: as the size has")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one-core", action="store_true", help="one XLA thread, for comparisons on a CPU")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
