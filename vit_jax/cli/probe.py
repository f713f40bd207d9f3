"""What frozen features are worth: k-NN, few-shot and linear probes of a model on a data set, in one table."""

import argparse
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vit_jax import config, paths
from vit_jax.cli import probe_head, probe_table, suspects
from vit_jax.cli.common import (
    REF,
    data_for,
    make_parser,
    nonempty_path,
    output_path,
    progress,
    run_command,
    tell,
)
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.fields import at_least

EXAMPLES = """examples:
  python -m vit_jax.cli.probe runs/quickstart
  python -m vit_jax.cli.probe dinov2_folder --data.name=folder --data.dir=photos --json
  python -m vit_jax.cli.probe augreg/B_16 --data.name=cifar10 '--data.train_split=train[:20%]' --layers 2
  python -m vit_jax.cli.probe dinov2_folder --data.name=folder --data.dir=photos --suspects 20
  python -m vit_jax.cli.probe runs/b16 --pooling token --lr 0.01,0.1 --weight_decay 0,1e-4 --out probe.md
  python -m vit_jax.cli.probe dinov2_folder --data.name=folder --data.dir=photos --head photos_folder \\
    --dialect huggingface

data fields that are not given are those that the run was trained with. Features are computed once for the
same weights, preprocessing and files, without augmentation, and kept in --cache.

k-NN (cosine; plain votes, and votes weighted as in DINO) searches the whole train split. The other probes
keep a tenth of it aside, to choose the l2 of the few-shot ridge regressions (mean of 3 draws) and one linear
head; only that head is measured on the eval split, which decides nothing. Linear heads of every block,
pooling, learning rate and weight decay are trained at once. Where the model itself was trained on that train
split, its features know the held-out examples, and accuracy on them flatters.

--suspects ranks training examples by the loss of the chosen linear head, trained on four fifths of the train
split and asked about the rest, five times; those whose label is the likeliest class are left out. A model
that was trained on these labels may have learned the wrong ones, too: use weights that were not trained on
them.

--head writes the model with a linear head of the features that its head sees: a classifier of the data, for
which each image was seen once. A folder (huggingface) keeps names of classes and preprocessing, too.
"""
HELD_OUT = 0.1  # of the train split
FEWEST = 20  # training examples that can be split
L2 = tuple(
    2.0**i for i in range(-10, 21, 3)
)  # features have deviation 1: sums of squares grow with the examples
LAYERS = 4  # as DINO's linear evaluation, arXiv:2104.14294


class Probed(NamedTuple):
    """A model, the columns to train heads on, and the features of both splits of its data."""

    loaded: Any
    data: Any  # the section
    columns: Any
    train: Any
    test: Any
    source: Source  # of the train split

    @property
    def names(self) -> list[str]:
        """Of the classes."""
        return list(self.source.class_names)


def main() -> None:
    """Parse the command line, get the features, probe them, print."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help=REF)
    parser.add_argument(
        "--layers", type=int, help="how many of the last blocks (default: 4, or all of fewer)"
    )
    parser.add_argument(
        "--pooling", help="of token, gap and model (its own), with commas (default: all that differ)"
    )
    parser.add_argument("--neighbours", default="10,20,50", help="k of k-NN (default: 10,20,50)")
    parser.add_argument("--shots", default="1,5,10,25", help="examples per class (default: 1,5,10,25)")
    rates = "0.001,0.003,0.01,0.03,0.1,0.3,1,3"
    parser.add_argument("--lr", default=rates, help=f"learning rates of linear heads (default: {rates})")
    decays = "0,1e-5,1e-4,1e-3,1e-2"
    parser.add_argument("--weight_decay", default=decays, help=f"of linear heads (default: {decays})")
    parser.add_argument("--epochs", type=int, default=10, help="passes of linear heads (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of what is held out, drawn and shuffled")
    parser.add_argument("--image_size", type=int, help="resize the position embedding for this size")
    parser.add_argument("--batch_size", type=int, default=128, help="images per batch (default: 128)")
    parser.add_argument(
        "--cache", type=nonempty_path, help="folder of features (default: in the user's cache)"
    )
    parser.add_argument(
        "--out", type=output_path(".md", ".csv"), help="write the table to this .md or .csv file"
    )
    parser.add_argument(
        "--suspects", type=int, default=0, metavar="N", help="name N training examples with suspect labels"
    )
    parser.add_argument(
        "--head", type=nonempty_path, help="write the model with a linear head to this file or folder"
    )
    parser.add_argument("--dialect", default="official", help="whose layout --head has (default: official)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args, rest = parser.parse_known_args()
    _check(args)

    probed = _features(args, rest)
    facts = {"ref": args.ref, **_probe(args, probed)}
    if args.suspects:
        facts["suspects"] = suspects.find(args, probed, facts["linear"])
    if args.head:
        facts["head"] = probe_head.write(args, probed, facts["linear"])
    if args.out:
        probe_table.write(args.out, facts)
    print(json.dumps(facts) if args.json else probe_table.text(facts))


def _check(args: argparse.Namespace) -> None:
    for name, least in (("batch_size", 1), ("epochs", 1), ("seed", 0), ("suspects", 0)):
        at_least(f"--{name}", getattr(args, name), least)
    if args.cache and paths.in_bucket(paths.of(args.cache)):
        raise UserError(f"--cache={args.cache} is in a bucket: give a folder of this machine")
    for name, kind, low in (
        ("neighbours", int, 1),
        ("shots", int, 1),
        ("lr", float, 0),
        ("weight_decay", float, 0),
    ):
        setattr(args, name, _numbers(name, getattr(args, name), kind, low))


def _numbers(name: str, text: str, kind: Callable[[str], Any], low: float) -> tuple[Any, ...]:
    """Distinct numbers with commas between, in ascending order. Raises UserError."""
    try:
        found = sorted({kind(part) for part in text.split(",")})
    except ValueError as e:
        raise UserError(f"--{name}={text} is not a list of numbers: write --{name} 1,2,3, for example") from e
    if not all(low <= x < float("inf") for x in found):
        raise UserError(f"--{name}={text}: every number must be at least {low}, and finite")
    return tuple(found)


def _features(args: argparse.Namespace, rest: list[str]) -> Probed:
    import vit_jax  # after parsing: --help stays quick
    from vit_jax.analysis import features
    from vit_jax.data import sources
    from vit_jax.staging import cache_dir

    loaded = vit_jax.load(args.ref, image_size=args.image_size)
    cfg, data = loaded.spec.model, data_for(loaded, rest)
    poolings = args.pooling.split(",") if args.pooling else features.meaningful(cfg)
    layers = min(LAYERS, cfg.depth) if args.layers is None else args.layers
    columns = features.choose(cfg, layers=layers, poolings=poolings)
    train, test = sources.open_splits(data)
    tell(train, test)
    if args.head:
        probe_head.check(args, loaded, data, columns, train.class_names)
    if train.multi_label or test.multi_label:
        raise UserError("the data gives several labels per image: probes are for one, so give such data")
    if train.class_names != test.class_names:
        raise UserError("the train and the eval split have other classes: give splits of one data set")
    fewest = max(FEWEST, *args.neighbours)
    if train.size < fewest:
        raise UserError(
            f"the train split has {train.size} examples: want at least {fewest}, for --neighbours and to "
            "hold some out"
        )
    every = tuple(dict.fromkeys([*columns, features.seen_by_head(cfg)]))
    cache = features.Cache(pathlib.Path(args.cache or cache_dir() / "features"))
    made = []
    for source, is_train in ((train, True), (test, False)):
        job = features.Job(cfg, config.preprocess_of(data), data, every, is_train, args.batch_size)
        start = time.perf_counter()
        name = "train" if is_train else "eval"
        on_progress = progress(f"{name} split: examples", source.size)
        split, path, found = cache.split(job, loaded.params, source, on_progress)
        spent = time.perf_counter() - start
        how = f"read from {path}" if found else f"made in {spent:.1f} s, kept in {path}"
        print(f"{name} split: features of {len(split.label):,} examples, {how}", file=sys.stderr)
        made.append(split)
    return Probed(loaded, data, columns, train=made[0], test=made[1], source=train)


def _probe(args: argparse.Namespace, probed: Probed) -> dict[str, Any]:
    """What every probe found, as `--json` prints it."""
    from vit_jax.analysis import features, probes

    columns, train, test = probed.columns, probed.train, probed.test
    head = features.seen_by_head(probed.loaded.spec.model)
    classes = max(len(probed.names), int(train.label.max()) + 1, int(test.label.max()) + 1)
    order = np.random.default_rng(args.seed).permutation(len(train.label))
    held, kept = np.split(order, [round(HELD_OUT * len(order))])
    part = lambda split, at: probes.Part(split.columns[head][at], split.label[at])
    three = (part(train, kept), part(train, held), part(test, slice(None)))
    say = lambda what: print(f"probes: {what}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    say(f"k-NN of {len(test.label):,} among {len(train.label):,} examples")
    voted = probes.knn(
        train.columns[head], train.label, test.columns[head], classes=classes, neighbours=args.neighbours
    )
    say(f"few-shot ridge regressions of {', '.join(map(str, args.shots))} a class")
    few = [
        probes.few_shot(*three, shots=shots, l2=L2, classes=classes, seed=args.seed)._asdict()
        for shots in args.shots
    ]
    heads = len(columns) * len(args.lr) * len(args.weight_decay)
    say(f"{heads:,} linear heads at once, {args.epochs} epochs of {len(kept):,} examples")
    found = {
        "examples": {"train": len(kept), "held_out": len(held), "eval": len(test.label)},
        "features": head.name,
        "knn": [
            {"vote": vote, "k": k, "top1": float((p == test.label).mean())} for (vote, k), p in voted.items()
        ],
        "few_shot": few,
        "linear": _linear(args, columns, train, test, (kept, held), classes),
    }
    say(f"{time.perf_counter() - start:.1f} s")
    return found


def _linear(
    args: argparse.Namespace, columns: Any, train: Any, test: Any, at: tuple[Any, Any], classes: int
) -> dict[str, Any]:
    """The best head of each column by the held-out part, and the best of all on the eval split."""
    from vit_jax.analysis import probes, statistics

    kept, held = at
    scales = [probes.standard(train.columns[column][kept]) for column in columns]
    stacked = lambda split, at: probes.Part(
        probes.stack([scale(split.columns[c][at]) for scale, c in zip(scales, columns, strict=True)]),
        split.label[at],
    )
    grid = list(itertools.product(args.lr, args.weight_decay))
    rates, decays = map(np.array, zip(*grid, strict=True))
    parts = (stacked(train, kept), stacked(train, held), stacked(test, slice(None)))
    fixed = {"classes": classes, "epochs": args.epochs, "seed": args.seed}
    found = probes.linear(*parts, rates=rates, decays=decays, **fixed)
    best = [int(hits.argmax()) for hits in found.held_out]
    best[found.column] = found.head  # among equals, the one that was chosen
    low, high = statistics.bootstrap_interval(found.correct)
    return {
        "heads": found.held_out.size,
        "columns": [
            {
                "features": column.name,
                "lr": grid[h][0],
                "weight_decay": grid[h][1],
                "held_out": float(found.held_out[g, h]),
            }
            for g, (column, h) in enumerate(zip(columns, best, strict=True))
        ],
        "chosen": found.column,
        "top1": float(found.correct.mean()),
        "top1_interval": [low, high],
    }


if __name__ == "__main__":
    raise SystemExit(run_command(main))
