"""What the TPU's compiler says of the train step on chips that are not here: ours and other people's.

    PYTHONPATH=. python benchmarks/accelerator.py               # S/16, v5e-4, ours and Flax's
    PYTHONPATH=. python benchmarks/accelerator.py --sizes S/16,B/16,L/16=16 --targets v5e-4,v6e-4 \\
      --peers flax,official=CHECKOUT,big_vision=CHECKOUT
    PYTHONPATH=. python benchmarks/accelerator.py --sizes B/16 --peers "" --by line

The same step for all: uint8 images, AdamW, clipped gradients, parameters whole on every chip. Needs the extra
aot, and no TPU. Cycles are the compiler's own estimate, no measured time. They leave out what chips exchange.
Our kernels, of which it makes none, are in them with their products at the chip's rate (`kernels_m`). `peak`
is the share of the chip's bfloat16 products that the model needs, at three forward passes a step. Whole
outputs: benchmarks/results/accelerator.md.
"""

import argparse
import functools
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from vit_jax.run import target

if __name__ == "__main__":
    target.prepare()  # before jax

import jax

from vit_jax.data.source import Splits
from vit_jax.data.sources import Absent
from vit_jax.models import variants
from vit_jax.run import program, setup
from vit_jax.sections import Config, Model, Optim, Train
from vit_jax.training import mesh as meshes

sys.path.insert(0, str(Path(__file__).parent))
from contenders import CLASSES, CLIP_NORM, Work
from peers import linen_vits

GIB, MIB = 2**30, 2**20
COLUMNS = (
    "name",
    "cycles_m",
    "kernels_m",
    "ms",
    "peak",
    "temporaries_gib",
    "accessed_gb",
    "exchanged_mib",
    "code_mib",
    "compile_s",
)
MOST_LINES = 30


def ours(cfg: Model, batch_size: int, mesh: Any, args: argparse.Namespace) -> jax.stages.Lowered:
    """vit_jax's own step, as `train.py` runs it."""
    train = Train(batch_size=batch_size, steps=10_000, scan=args.scan, remat=args.remat)
    run = Config(model=cfg, optim=Optim(name="adamw", clip_norm=CLIP_NORM), train=train)
    data = Absent(CLASSES, tuple(map(str, range(CLASSES))))
    return setup.set_up(run, mesh, Splits(data, data)).lower_step()


def peers(cfg: Model, batch_size: int, mesh: Any, peer: str) -> jax.stages.Lowered:
    """The plain step of other people's models."""
    kind, _, checkout = peer.partition("=")
    init, apply = linen_vits.forward(cfg, kind, checkout)
    begin, update = linen_vits.training(apply, "adamw")
    batch, whole = meshes.batch_like(batch_size, cfg.image_hw, 3, mesh), meshes.everywhere(mesh)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = jax.eval_shape(lambda image: begin(init(jax.random.key(0), image)), batch.image)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)
        step = jax.jit(update, donate_argnums=0, out_shardings=jax.tree.map(lambda _: whole, state))
        return step.lower(like, batch.image, batch.label)


def row(name: str, lowered: jax.stages.Lowered, flops: float, chip: target.Chip, mesh: Any) -> dict[str, Any]:
    """Figures of a chip and a step; `flops` are those of the model's products on a chip."""
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    found = program.read(compiled.as_text() or "", dict(mesh.shape))
    step_s = chip.seconds(found)
    assert memory is not None
    return {
        "name": name,
        "cycles_m": step_s * chip.clock_hz / 1e6,
        "kernels_m": found.kernel_flops / chip.peak_flops * chip.clock_hz / 1e6,
        "ms": step_s * 1e3,
        "peak": flops / step_s / chip.peak_flops if step_s else 0.0,
        "temporaries_gib": memory.temp_size_in_bytes / GIB,
        "accessed_gb": cost.get("bytes accessed", 0.0) / 1e9,
        "exchanged_mib": sum(c.bytes for c in found.collectives) / MIB,
        "code_mib": memory.generated_code_size_in_bytes / MIB,
        "compile_s": seconds,
        "by_line": by_line(found.by_line),
    }


def by_line(cycles: Counter[str]) -> dict[str, float]:
    """Millions of cycles of the dearest lines, blocks added up."""
    found: Counter[str] = Counter()
    for name, n in cycles.items():
        found[re.sub(r"(block_?|layers?_|layer)\d+", r"\1N", name)] += n
    return {name: n / 1e6 for name, n in found.most_common(MOST_LINES)}


def rows(args: argparse.Namespace) -> Any:
    """A row a size, target and contender, as they are compiled."""
    for name in args.targets.split(","):
        slice_ = target.find(name)
        mesh = meshes.over(slice_.devices, 1)
        for entry in args.sizes.split(","):
            size, _, batch = entry.partition("=")
            batch = int(batch or args.batch)
            cfg = Model(**variants.model(size), image_size=args.image_size, classes=CLASSES, dtype=args.dtype)
            flops = Work(size, cfg, "adamw", batch).flops
            makers = {"ours": functools.partial(ours, args=args)}
            for peer in filter(None, args.peers.split(",")):
                makers[peer.partition("=")[0]] = functools.partial(peers, peer=peer)
            for who, make in makers.items():
                with jax.set_mesh(mesh):
                    lowered = make(cfg, batch * mesh.size, mesh)
                    yield row(f"{who} {size} x {batch} {name}", lowered, flops, slice_.chip, mesh)


def main() -> None:
    args = _arguments()
    if not (args.json or args.by):
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for found in rows(args):
        if args.json:
            print(json.dumps(found), flush=True)
        elif args.by:
            print(f"{found['name']}: {found['cycles_m']:.1f} M cycles")
            print("".join(f"{n:8.2f} M  {line}\n" for line, n in found["by_line"].items()), flush=True)
        else:
            cells = [found["name"], *(f"{found[c]:.3g}" for c in COLUMNS[1:])]
            print(f"| {' | '.join(cells)} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", default="S/16", help="as vit_jax.models.variants names them; L/16=16: 16 images"
    )
    parser.add_argument(
        "--targets", default="v5e-4", help="slices as train.py --target takes them, separated by commas"
    )
    parser.add_argument("--batch", type=int, default=64, help="images a chip")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--scan", action="store_true", help="our step with train.scan")
    parser.add_argument("--remat", default="none", help="of our step, as train.remat")
    parser.add_argument("--peers", default="flax", help="flax, official=CHECKOUT, big_vision=CHECKOUT")
    parser.add_argument("--by", choices=["line"], help="cycles by line of the model")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
