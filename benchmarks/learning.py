"""A gate for learning: short runs of several recipes on digits, each within the band that it had before.

    PYTHONPATH=. python benchmarks/learning.py                       # all recipes, seeds 100 and 101
    PYTHONPATH=. python benchmarks/learning.py --recipe scratch,muon --seeds 5,6,7
    PYTHONPATH=. python benchmarks/learning.py --update --seeds 0,1,2,3,4,5,6,7,8,9   # store the bands anew

A band is the mean and the standard deviation of each measure over the stored seeds. The mean over the seeds
of now is to be as near to it as chance explains: by Student's t with the spread that was stored, at a level
that fails one gate of a hundred without a cause, however many measures it has (Bonferroni). Losses say more
than accuracies, and the loss of the first steps and the size of biases and kernels more than either of how a
step is made. Data, steps and evaluations are those of `train.py`; checkpoints and reports are left out. Exit
status 1 names each recipe and measure outside, and by how many standard deviations. Bands:
benchmarks/results/learning.json.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy import stats

from vit_jax import config
from vit_jax.data import loader, sources
from vit_jax.data.source import Source, Splits
from vit_jax.errors import UserError
from vit_jax.fields import matches
from vit_jax.models import build
from vit_jax.run.setup import set_up
from vit_jax.sections import Config
from vit_jax.training import mesh as meshes
from vit_jax.training.step import State

BANDS = Path(__file__).parent / "results" / "learning.json"
WEIGHTS = BANDS.with_suffix(".npz")  # that some recipes begin with: stored, so that they vary little
FALSE_ALARMS = 0.01  # of whole gates
STEPS, LOGS = 160, 4
BASE_SEED = 1000  # of the run that made WEIGHTS
BASE: dict[str, Any] = {
    "model": {"image_size": 8, "patch_size": 2, "width": 32, "depth": 1, "heads": 2, "mlp_width": 64}
    | {"class_token": False, "pooling": "gap", "posemb": "sincos2d"},
    "data": {"channels": 1, "augment": "none", "flip": False, "erase": 0.25, "threads": 1},
    "optim": {"lr": 5e-3, "warmup_steps": 40, "weight_decay": 1.0, "clip_norm": 1.0},
    "train": {"steps": STEPS, "batch_size": 64, "log_every": STEPS // LOGS, "checkpoint_every": STEPS},
}


class Recipe(NamedTuple):
    """Fields beside BASE; `follows` begins with the stored weights; `data` changes a split."""

    fields: dict[str, dict[str, Any]]
    follows: bool = False
    data: Callable[[Source, bool], Source] = lambda source, train: source


def two_bits(source: Source, train: bool) -> Source:
    """Digits by their last two bits, as four classes; of one in ten to train on another one, at random."""
    digits: Any = source
    bits_n, rng = digits.labels() % 4, np.random.default_rng(0)
    other_n = (bits_n + rng.integers(1, 4, source.size)) % 4
    flipped_n = train & (rng.random(source.size) < 0.1)
    label_n = np.where(flipped_n, other_n, bits_n).astype(np.int32)
    return dataclasses.replace(digits, labels_n=label_n, class_names=("0", "1", "2", "3"))


TOGETHER = {"scan": True, "remat": "full", "micro_batches": 2}
RECIPES = {
    "scratch": Recipe({"optim": {"ema": 0.95}}),  # the shortest
    "checkpoint": Recipe({"optim": {"lr": 2e-3}}, follows=True),
    "probe": Recipe({"optim": {"lr": 2e-2, "trained": ["^head"]}}, follows=True),
    "two_bits": Recipe({}, data=two_bits),
    "together": Recipe({"model": {"depth": 2}, "optim": {"ema": 0.95}, "train": TOGETHER}),
    "muon": Recipe({"optim": {"name": "muon"}}),
    "lion": Recipe({"optim": {"name": "lion", "lr": 1e-3, "weight_decay": 3.0}}),
    "sgd": Recipe({"optim": {"name": "sgd", "lr": 0.3, "weight_decay": 1e-3}}),
}


class Band(NamedTuple):
    """Of one measure over stored seeds."""

    mean: float
    deviation: float
    seeds: int


class Verdict(NamedTuple):
    """Of one measure: its mean now, and how many standard deviations of that mean it is from its band."""

    recipe: str
    measure: str
    value: float
    band: Band
    deviations: float
    limit: float

    def __str__(self) -> str:
        side = "above" if self.deviations > 0 else "below"
        away = f"{abs(self.deviations):.1f} standard deviations {side} {self.band.mean:.4g}"
        return f"{self.recipe}: {self.measure} {self.value:.4g} is {away} (limit {self.limit:.1f})"


def configured(recipe: Recipe) -> Config:
    """The config of `recipe`."""
    tree = config.to_dict(config.parse({"train": {"steps": STEPS}}))
    for fields in (BASE, recipe.fields):
        for section, values in fields.items():
            tree[section].update(values)
    return config.parse(tree)


class Program:
    """A recipe, compiled once for all seeds: no field of one draws random numbers within a step."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.cfg = recipe, configured(recipe)
        self.data = Splits(*(recipe.data(sources.digits(train=train), train) for train in (True, False)))
        self.mesh = meshes.over(jax.devices()[:1], 1)
        with jax.set_mesh(self.mesh):
            self.setup = set_up(self.cfg, self.mesh, self.data)
        model = build.build(self.setup.spec.model)
        self.fresh = jax.jit(lambda key: build.init(model, key, image_hw=(8, 8), channels=1))

    def run(self, seed: int) -> tuple[State, list[float]]:
        """The last state, as steps take it, and the mean loss of each log's steps."""
        setup, train = self.setup, self.cfg.train
        losses = []
        with jax.set_mesh(self.mesh):
            params = read_base() if self.recipe.follows else self.fresh(jax.random.key(seed))
            state = setup.adopt(params)
            rows = meshes.host_rows(train.batch_size, self.mesh)
            image_hw = setup.spec.model.image_hw
            batches = loader.TrainBatches(
                self.data.train, self.cfg.data, image_hw, train.batch_size, seed, STEPS, rows
            )
            for step, batch in enumerate(loader.iterate(batches, self.cfg.data), 1):
                given = meshes.to_devices(batch, train.batch_size, self.mesh)
                state, _ = setup.step(state, given, None, None)
                if step % train.log_every == 0:
                    losses.append(float(state.window.loss / state.window.weight))
            return state, losses

    def measures(self, seed: int) -> dict[str, float]:
        """What a run came to."""
        state, losses = self.run(seed)
        with jax.set_mesh(self.mesh):
            measure = lambda params: self.setup.evaluate(params, self.data.eval, self.cfg.data)
            found, of_mean = measure(state.params), measure(state.ema) if self.cfg.optim.ema else {}
        trained = self.cfg.optim.trained
        size = {kind: _log_norm(state.params, kind, trained) for kind in ("kernel", "bias")}
        named = {"first loss": losses[0], "mean loss": statistics.mean(losses), "last loss": losses[-1]}
        named |= {"held-out loss": found["loss"], "accuracy": found["top1"]}
        named |= {"log of biases' norm": size["bias"], "log of kernels' norm": size["kernel"]}
        return named | ({"held-out loss of the mean": of_mean["loss"]} if of_mean else {})


def repeat(names: Sequence[str], seeds: Sequence[int]) -> dict[str, list[dict[str, float]]]:
    """The measures of a run a seed, for each recipe."""
    found = {}
    for name in names:
        print(f"{name}: {len(seeds)} runs", file=sys.stderr, flush=True)
        program = Program(RECIPES[name])
        found[name] = [program.measures(seed) for seed in seeds]
    return found


def read_base() -> Any:
    """The stored weights. Raises UserError if there are none."""
    if not WEIGHTS.exists():
        raise UserError(f"there are no weights at {WEIGHTS}: store them by --base")
    with np.load(WEIGHTS) as file:
        return unflatten_dict(dict(file), sep="/")


def write_base() -> None:
    """Store the weights of a run of `scratch`, of another seed than those of bands."""
    state, _ = Program(RECIPES["scratch"]).run(BASE_SEED)
    np.savez(WEIGHTS, **jax.device_get(flatten_dict(state.params, sep="/")))


def bands(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Band]]:
    """Mean and standard deviation of each measure. Raises UserError for fewer than three seeds."""
    if few := [name for name, runs in found.items() if len(runs) < 3]:
        raise UserError(f"--seeds has too few for a band of {few[0]}: give at least 3")
    return {name: {key: _band([run[key] for run in runs]) for key in runs[0]} for name, runs in found.items()}


def judge(
    found: dict[str, list[dict[str, float]]], stored: dict[str, dict[str, Band]], comparisons: int = 0
) -> list[Verdict]:
    """A Verdict a measure, of `comparisons` in a gate (0: these). Raises UserError for one without a band."""
    comparisons = comparisons or sum(len(runs[0]) for runs in found.values())
    verdicts = []
    for name, runs in found.items():
        if name not in stored or stored[name].keys() != runs[0].keys():
            raise UserError(f"{BANDS.name} has no band of recipe {name} as it is now: store it by --update")
        for key, band in stored[name].items():
            value = statistics.mean(run[key] for run in runs)
            error = band.deviation * math.sqrt(1 / len(runs) + 1 / band.seeds)
            limit = float(stats.t.ppf(1 - FALSE_ALARMS / comparisons / 2, band.seeds - 1))
            verdicts.append(Verdict(name, key, value, band, (value - band.mean) / error, limit))
    return verdicts


def outside(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that chance does not explain; one that is no number is."""
    return [verdict for verdict in verdicts if not abs(verdict.deviations) <= verdict.limit]


def table(verdicts: Sequence[Verdict]) -> str:
    """Markdown, a row a measure."""
    rows = [
        f"| {v.recipe} | {v.measure} | {v.value:.4f} | {v.band.mean:.4f} | {v.band.deviation:.4f} "
        f"| {v.deviations:+.1f} |"
        for v in verdicts
    ]
    head = "| recipe | measure | now | band | deviation | standard deviations away |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def read_bands(path: Path = BANDS) -> dict[str, dict[str, Band]]:
    """The stored bands. Raises UserError if there are none."""
    if not path.exists():
        raise UserError(f"there are no bands at {path}: store them by --update")
    recipes = json.loads(path.read_text())["recipes"]
    return {name: {key: Band(**band) for key, band in own.items()} for name, own in recipes.items()}


def write_bands(new: dict[str, dict[str, Band]], path: Path = BANDS) -> None:
    """Store bands in the place of those of the same recipes."""
    recipes = (read_bands(path) if path.exists() else {}) | new
    named = {name: {key: band._asdict() for key, band in own.items()} for name, own in recipes.items()}
    bands = {"steps": STEPS, "jax": jax.__version__, "recipes": named}
    path.write_text(json.dumps(bands, indent=1) + "\n")


def _band(values: list[float]) -> Band:
    """Accuracies may be all equal: their deviation is at least the resolution, one of 359 examples."""
    return Band(statistics.mean(values), max(statistics.stdev(values), 1 / 359), len(values))


def _log_norm(params: Any, kind: str, trained: tuple[str, ...]) -> float:
    """Of the parameters of a kind that are trained. A hundredth of it is one per cent."""
    flat = flatten_dict(params, sep="/")
    own = [x for name, x in flat.items() if name.endswith(kind) and (not trained or matches(trained, name))]
    return math.log(sum(float(np.square(x).sum()) for x in own)) / 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default=",".join(RECIPES), help="with commas; all, if not given")
    parser.add_argument("--seeds", default="100,101", help="with commas")
    parser.add_argument("--base", action="store_true", help="first store weights to begin with anew")
    parser.add_argument("--update", action="store_true", help="store the bands of these recipes anew")
    args = parser.parse_args(arguments)
    try:
        names = args.recipe.split(",")
        if unknown := [name for name in names if name not in RECIPES]:
            raise UserError(f"--recipe {unknown[0]} is none of {', '.join(RECIPES)}")
        if not all(seed.isdecimal() for seed in args.seeds.split(",")):
            raise UserError(f"--seeds {args.seeds} is not numbers with commas between, as 0,1,2")
        seeds = [int(seed) for seed in args.seeds.split(",")]
        stored = {} if args.update else read_bands()
        if args.base:
            write_base()
        if args.update:
            for name in names:  # each as soon as it is known
                write_bands(bands(repeat([name], seeds)))
            return 0
        verdicts = judge(repeat(names, seeds), stored)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(verdicts))
    for verdict in outside(verdicts):
        print(f"outside: {verdict}")
    return 1 if outside(verdicts) else 0


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/vit_jax").expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # seeds share programs
    sys.exit(main())
