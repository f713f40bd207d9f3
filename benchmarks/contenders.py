"""What `benchmarks/step.py` runs side by side: work, programs that do it, and how their turns are timed."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax.models import build, stack
from vit_jax.sections import Model, Optim, Preprocess, Train
from vit_jax.training import optim, step

INFERENCE = "inference"
CLASSES = 1000
CLIP_NORM = 1.0  # of all gradients together before each update, as in the published recipes of ViTs
COLUMNS = ("name", "images_s", "images_cpu_s", "ratio", "mfu", "compile_s", "peak_mib")


class Batch(NamedTuple):
    """What `train_step` reads: arrays, or their shapes."""

    image: Any
    label: Any
    weight: Any


class Work(NamedTuple):
    """A forward pass (`mode` inference) or a train step (`mode` an optimizer's name) on one batch."""

    size: str
    cfg: Model
    mode: str
    batch: int
    scan: bool = False

    @property
    def flops(self) -> float:
        """Floating-point operations of the products; a train step counts as three forward passes."""
        return self.batch * forward_flops(self.cfg) * (1 if self.mode == INFERENCE else 3)

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Random uint8 images [b, h, w, 3] and int32 labels [b]."""
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (self.batch, *self.cfg.image_hw, 3)).astype(np.uint8)
        return images, rng.integers(0, CLASSES, self.batch).astype(np.int32)


class Program(NamedTuple):
    """One turn of the work, ready to run; `peak_bytes` is 0 where nobody keeps account."""

    turn: Callable[[], None]
    compile_s: float
    peak_bytes: int


@dataclasses.dataclass
class Contender:
    """A program under a name, and the seconds of its turns. `work` is None for the matrix product."""

    name: str
    work: Work | None
    flops: float
    program: Program
    wall_s: list[float] = dataclasses.field(default_factory=list)
    cpu_s: list[float] = dataclasses.field(default_factory=list)

    def seconds(self) -> float:
        """The median turn: CPU seconds on a CPU, where other processes take their share of the wall's."""
        return statistics.median(self.cpu_s if jax.default_backend() == "cpu" else self.wall_s)


def forward_flops(cfg: Model) -> float:
    """Two times the multiply-accumulates of an image: patches, projections, attention, MLPs and head.

    All tokens of all blocks count, whether a program computes them or not.
    """
    patches = cfg.grid_hw[0] * cfg.grid_hw[1]
    tokens = patches + cfg.class_token + cfg.distill_token + cfg.registers
    d, hidden = cfg.width, cfg.mlp_width * (3 if cfg.mlp == "swiglu" else 2)
    mixing = tokens * 4 * d * d + 2 * tokens * tokens * d
    if cfg.family == "mixer":
        mixing = 2 * tokens * d * cfg.token_width
    block = mixing + tokens * d * hidden
    return 2.0 * (patches * cfg.patch_size**2 * 3 * d + cfg.depth * block + d * cfg.classes)


def trainer(cfg: Model, optimizer: Optim, *, scan: bool = False, remat: str = "none") -> tuple[Any, Any]:
    """vit_jax's jitted train step, whose state is donated, and the jitted function that makes the state."""
    model, rule = build.build(cfg, scan=scan, remat=remat), optim.make(optimizer, 1_000_000)

    def init() -> Any:
        params = build.init(model, jax.random.key(0), image_hw=cfg.image_hw, channels=3)
        return step.init_state(stack.stack(params) if scan else params, rule)

    train = Train(steps=1_000_000, log_every=50)
    recipe = step.Recipe(model=model, optimizer=rule, preprocess=Preprocess(), seed=0, train=train)
    update = functools.partial(step.train_step, recipe=recipe)
    return jax.jit(update, donate_argnums=0), jax.jit(init)


def compiled(function: Any, arguments: tuple[Any, ...], *, carries: bool) -> Program:
    """A jitted `function` compiled and run once; with `carries`, its result is its next first argument."""
    jax.block_until_ready(arguments)  # what still makes them would share the processor with the compiler
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    compile_s = time.perf_counter() - start
    holder = list(arguments)

    def turn() -> None:
        result = jax.block_until_ready(program(*holder))
        if carries:
            holder[0] = result

    turn()
    return Program(turn, compile_s, _peak_bytes(program))


def timed(turn: Callable[[], None], peak_bytes: Callable[[], int]) -> Program:
    """A program that compiles as it first runs: what its first turn took beyond its third."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        turn()
        seconds.append(time.perf_counter() - start)
    return Program(turn, max(seconds[0] - seconds[2], 0.0), peak_bytes())


def measure(contenders: Sequence[Contender], rounds: int) -> None:
    """Every contender once a round, in turn."""
    for _ in range(rounds):
        for c in contenders:
            wall, cpu = time.perf_counter(), time.process_time()
            c.program.turn()
            c.wall_s.append(time.perf_counter() - wall)
            c.cpu_s.append(time.process_time() - cpu)


def rows(contenders: Sequence[Contender], products: dict[str, Contender]) -> list[dict[str, Any]]:
    """A row of figures each; `ratio` is ours over it on the same work, `mfu` to the product of its dtype."""
    ours = {c.work: c.seconds() for c in reversed(contenders)}  # the first of a work is ours
    return [_row(c, ours[c.work], products[c.work.cfg.dtype]) for c in contenders if c.work]


def _row(c: Contender, ours_s: float, product: Contender) -> dict[str, Any]:
    assert c.work is not None
    return {
        "name": c.name,
        "images_s": c.work.batch / statistics.median(c.wall_s),
        "images_cpu_s": c.work.batch / c.seconds() if jax.default_backend() == "cpu" else None,
        "ratio": c.seconds() / ours_s,
        "mfu": (c.flops / c.seconds()) / (product.flops / product.seconds()),
        "compile_s": c.program.compile_s,
        "peak_mib": c.program.peak_bytes / 2**20 or None,
    }


def text(table: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    cell = lambda v: "" if v is None else v if isinstance(v, str) else f"{v:.3g}" if v < 100 else f"{v:.0f}"
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([cell(row[c]) for c in COLUMNS] for row in table)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _peak_bytes(program: Any) -> int:
    """Arguments, results and temporaries, what is donated once; 0 where XLA keeps no account."""
    m = program.memory_analysis()
    if m is None:
        return 0
    return m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
