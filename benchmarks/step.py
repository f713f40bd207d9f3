"""Images a second of inference and of the train step, sizes, dtypes, optimizers and peers in one run.

    PYTHONPATH=. python benchmarks/step.py                                       # Ti/16, table
    PYTHONPATH=. python benchmarks/step.py --sizes S/16,B/16 --dtypes bfloat16 --batch 64 --json
    PYTHONPATH=. python benchmarks/step.py --peers timm,timm_compiled,huggingface,flax,official=CHECKOUT

Runs on whatever device jax finds, and needs only jax, flax, optax and numpy; timm and Hugging Face need the
extra `parity`, the official code a checkout of google-research/vision_transformer.
Contenders take turns round by round and each figure is the median of its rounds, so that other load falls on
all alike. Run twice with one JAX_COMPILATION_CACHE_DIR and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0,
the second is of processes that did not compile, as `train.py` is on CPUs.
On a CPU the figure to trust is images a CPU-second (of all threads of this process); `--one-core` keeps XLA
and torch to one thread on one core, and freed memory is kept as training keeps it, for all alike.
`ratio` is how many times as fast as a row ours is on the same work. Model FLOP utilisation is what the
products of the model need (two a multiply-accumulate, three forward passes a train step, all tokens of all
blocks) as a part of the rate of one square matrix product of the same dtype, a contender of the same rounds.
Peak memory is XLA's own account of the compiled program, and torch's of its allocations on a GPU.

What was tried and measured: benchmarks/LOG.md. Whole outputs: benchmarks/results/.
"""

import argparse
import functools
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from vit_jax.models import build, variants
from vit_jax.run import cpu
from vit_jax.sections import Model, Optim, Preprocess
from vit_jax.training import step

sys.path.insert(0, str(Path(__file__).parent))
import contenders  # beside this file, as peers are
from contenders import CLASSES, CLIP_NORM, INFERENCE, Batch, Contender, Program, Work

PRODUCT_SIDE = 2048  # large enough for the best rate of the product, on a CPU core well under a second
PEERS = {  # name: module of peers/, and what its `program` takes beside the work
    "timm": ("torch_vits", {"library": "timm"}),
    "timm_compiled": ("torch_vits", {"library": "timm", "compile": True}),
    "huggingface": ("torch_vits", {"library": "huggingface"}),
    "huggingface_compiled": ("torch_vits", {"library": "huggingface", "compile": True}),
    "flax": ("linen_vits", {}),
    "official": ("linen_vits", {}),  # with checkout=
}


def ours(work: Work) -> Program:
    """vit_jax's own program for the work."""
    image, label = map(jnp.asarray, work.examples())
    if work.mode != INFERENCE:
        rule = Optim(name=work.mode, clip_norm=CLIP_NORM)
        update, init = contenders.trainer(work.cfg, rule, scan=work.scan)
        batch = Batch(image, label, jnp.ones(work.batch, jnp.float32))
        return contenders.compiled(update, (init(), batch), carries=True)
    model = build.build(work.cfg)
    params = jax.jit(functools.partial(build.init, model, image_hw=work.cfg.image_hw, channels=3))(
        jax.random.key(0)
    )
    apply = lambda params, image: model.apply({"params": params}, step.normalise(image, Preprocess()))
    return contenders.compiled(jax.jit(apply), (params, image), carries=False)


def works(args: argparse.Namespace) -> list[Work]:
    """The grid of sizes, dtypes and modes."""
    out = []
    for size in args.sizes.split(","):
        fields = variants.model(size) | {"image_size": args.image_size}
        fields["depth"] = args.depth or fields["depth"]
        for dtype in args.dtypes.split(","):
            cfg = Model(**fields, classes=CLASSES, dtype=dtype)
            if cfg.stem_width:
                raise SystemExit(f"{size}: the stem's convolutions are not counted: give a ViT or a Mixer")
            for mode in args.modes.split(","):
                scan = args.scan and mode != INFERENCE
                out.append(Work(size, cfg, mode, args.batch, scan))
    return out


def entrants(work: Work, peers: Sequence[str]) -> list[Contender]:
    """Ours, then the peers."""
    name = f"{work.size} {work.cfg.dtype} {work.mode}"
    found = [Contender(f"ours {name}", work, work.flops, ours(work))]
    for peer in peers:
        kind, _, checkout = peer.partition("=")
        if kind not in PEERS:
            raise SystemExit(f"--peers {kind}: use {', '.join(PEERS)}")
        module, options = PEERS[kind]
        options = options | ({"checkout": checkout} if kind == "official" else {})
        program = importlib.import_module(f"peers.{module}").program(work, **options)
        found.append(Contender(f"{kind} {name}", work, work.flops, program))
    return found


def product(dtype: str) -> Contender:
    """A square matrix product: the rate that utilisation is a part of."""
    a = jnp.full((PRODUCT_SIDE, PRODUCT_SIDE), 0.5, dtype)
    program = contenders.compiled(jax.jit(jnp.matmul), (a, a), carries=False)
    return Contender(f"product {dtype}", None, 2.0 * PRODUCT_SIDE**3, program)


def versions() -> dict[str, str]:
    """Of what takes part."""
    names = ("jax", "flax", "torch", "timm", "transformers")
    return {n: sys.modules[n].__version__ for n in names if n in sys.modules}


def main() -> None:
    args = _arguments()
    if args.one_core:  # read by XLA when the first array is made, by OpenMP when torch is loaded
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
        os.environ["OMP_NUM_THREADS"] = "1"
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if cpu.only_cpu("any"):  # as training does; peers in this process have the same of it
        cpu.keep_freed()
    peers = args.peers.split(",") if args.peers else []
    products = {dtype: product(dtype) for dtype in args.dtypes.split(",")}
    entered = [c for work in works(args) for c in entrants(work, peers)]
    contenders.measure([*entered, *products.values()], args.rounds)
    head = {"device": jax.devices()[0].device_kind, **versions(), "image_size": args.image_size}
    head |= {"batch": args.batch, "rounds": args.rounds}
    head["product_gflop_s"] = {d: c.flops / c.seconds() / 1e9 for d, c in products.items()}
    table = contenders.rows(entered, products)
    if args.json:
        print(json.dumps({**head, "rows": table}))
    else:
        print(f"{json.dumps(head)}\n{contenders.text(table)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="Ti/16", help="as vit_jax.models.variants names them, with commas")
    parser.add_argument("--modes", default="inference,sgd,adamw", help="inference, or an optimizer's name")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--depth", type=int, default=0, help="blocks, for a quick look; 0: as the size has")
    parser.add_argument("--scan", action="store_true", help="our train steps with train.scan")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--one-core", action="store_true", help="one thread on one core, for comparisons on a CPU"
    )
    parser.add_argument("--peers", default="", help=f"{', '.join(PEERS)}; official=PATH names its checkout")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
