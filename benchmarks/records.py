"""Records of recipes in results/, and the table of docs/results.md that is made from them.

    python benchmarks/records.py train configs/quickstart.py --runs runs/quickstart
    python benchmarks/records.py write configs/quickstart.py --runs runs/quickstart
    python benchmarks/records.py table

`train` is train.py once a seed, one after another, in a folder each; killed, the same command continues it.
What each process took is added to cost.jsonl in its folder. `write` makes results/NAME.json of finished
runs of one recipe at one commit: what a reader needs to repeat them, and the whole config, by which
tests/config/test_results.py sees that a recipe has changed since. Arguments after `--` go to train.py.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from vit_jax import config
from vit_jax.cli.common import run_command
from vit_jax.errors import UserError
from vit_jax.weights.load import read

ROOT = Path(__file__).parent.parent
RECORDS, PAGE = ROOT / "results", ROOT / "docs" / "results.md"
BEGIN, END = "<!-- made by benchmarks/records.py -->", "<!-- to here -->"
LEVEL = 0.95
OF_A_RUN = ("seed", "data.dir")  # what runs of one recipe may differ in
HEAD = """| recipe | metric | mean | 95 % interval | each seed | parameters | minutes | CPU minutes | date |
|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Parse the command line, then train, write a record, or make the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "write"):
        command = commands.add_parser(name)
        command.add_argument("config", help="config file, as configs/quickstart.py")
        command.add_argument("--runs", type=Path, required=True, help="folder of the runs, one folder a seed")
        command.add_argument("--seeds", default="0,1,2", help="seeds, with commas (default: 0,1,2)")
    commands.choices["write"].add_argument("--metric", default="top1", help="of evaluations (default: top1)")
    commands.choices["write"].add_argument("--note", default="", help="what else there is to say")
    commands.add_parser("table")
    words = sys.argv[1:]
    own, rest = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    args = parser.parse_args(own)
    if args.command == "table":
        PAGE.write_text(page(PAGE.read_text(), read_all()))
        return
    seeds = [int(seed) for seed in args.seeds.split(",")]
    folders = [args.runs / str(seed) for seed in seeds]
    commands_of_seeds = [
        command_of(args.config, folder, seed, rest) for folder, seed in zip(folders, seeds, strict=True)
    ]
    if args.command == "train":
        for folder, command in zip(folders, commands_of_seeds, strict=True):
            train(folder, command)
        return
    record = make(args.config, folders, commands_of_seeds[0], args.metric, args.note)
    path = RECORDS / f"{Path(args.config.partition(':')[0]).stem}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(row(path.stem, record))


def command_of(reference: str, folder: Path, seed: int, rest: Sequence[str]) -> list[str]:
    """The command that trains one seed."""
    return ["train.py", "--config", reference, "--workdir", str(folder), f"--config.seed={seed}", *rest]


def train(folder: Path, command: list[str]) -> None:
    """Run `command` to its end and add what it took to cost.jsonl, also after Ctrl-C.

    Raises UserError if it fails.
    """
    started, before = time.perf_counter(), cpu_minutes()
    with subprocess.Popen([sys.executable, *command], cwd=ROOT) as process:
        try:
            code = process.wait()
        finally:
            process.wait()  # of Ctrl-C it has heard itself, and ends with a checkpoint
            cost = {"minutes": (time.perf_counter() - started) / 60, "cpu_minutes": cpu_minutes() - before}
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "cost.jsonl").open("a") as file:
                file.write(json.dumps(cost) + "\n")
    if code:
        raise UserError(f"{shlex.join(command)} ended with {code}: the same command continues")


def cpu_minutes() -> float:
    """What all processes that this one started and saw end have taken of the processors."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (usage.ru_utime + usage.ru_stime) / 60


def make(
    reference: str, folders: Sequence[Path], command: list[str], metric: str, note: str
) -> dict[str, Any]:
    """The record of finished runs. Raises UserError for runs that are missing, unfinished or not alike."""
    runs = [read_run(folder, metric) for folder in folders]
    for key in ("commit", "versions", "config"):
        if any(run[key] != runs[0][key] for run in runs):
            raise UserError(f"the runs {', '.join(map(str, folders))} differ in {key}: train them alike")
    if runs[0]["commit"].endswith("+changes"):
        raise UserError(f"{folders[0]} ran from a tree that no commit has: commit, then train again")
    values = [run["result"] for run in runs]
    low, high = interval(values)
    return {
        "config": reference,
        "command": "python " + shlex.join(command),
        "metric": metric,
        "mean": statistics.fmean(values),
        "interval": [low, high],
        "interval_is": f"{LEVEL:.0%} t-interval of the mean over seeds",
        "parameters": runs[0]["parameters"],
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "commit": runs[0]["commit"],
        "versions": runs[0]["versions"],
        "note": note,
        "runs": [
            {key: run[key] for key in ("seed", "result", "minutes", "cpu_minutes", "curve")} for run in runs
        ],
        "fields": runs[0]["config"],
    }


def read_run(folder: Path, metric: str) -> dict[str, Any]:
    """What the folder of a finished run says. Raises UserError."""
    try:
        fields = json.loads((folder / "config.json").read_text())
        origin = json.loads((folder / "origin.json").read_text())
        logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        costs = [json.loads(line) for line in (folder / "cost.jsonl").read_text().splitlines()]
        finished = "\ndone: " in (folder / "log.txt").read_text()
    except FileNotFoundError as e:
        raise UserError(f"{e.filename} is missing: train the recipe with benchmarks/records.py train") from e
    if not finished:
        raise UserError(f"{folder} is not finished: the same `train` continues it")
    curve = [[log["step"], log[f"eval/{metric}"]] for log in logs if f"eval/{metric}" in log]
    if not curve:
        raise UserError(f"{folder} has no evaluation of {metric}: see metrics.jsonl")
    seed = fields["seed"]
    for name in OF_A_RUN:
        section, _, field = name.rpartition(".")
        (fields[section] if section else fields).pop(field)
    return {
        "seed": seed,
        "config": fields,
        "commit": origin["commit"],
        "versions": origin["versions"],
        "parameters": read(str(folder)).report.parameters,
        "result": curve[-1][1],
        "curve": curve,
        "minutes": sum(cost["minutes"] for cost in costs),
        "cpu_minutes": sum(cost["cpu_minutes"] for cost in costs),
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t-interval of the mean of `values`. Raises UserError for fewer than two."""
    if len(values) < 2:
        raise UserError(f"{len(values)} seed says nothing of how seeds differ: train two or more")
    mean, error = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return mean - reach, mean + reach


def machine() -> str:
    """Processors and memory, in words."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()}-core {platform.machine()}, {gib:.0f} GiB"


def read_all() -> dict[str, dict[str, Any]]:
    """Every record by its name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))}


def changed(record: dict[str, Any]) -> list[str]:
    """`field: old -> new` of each field that its config file now has otherwise than the record."""
    now = config.load_file(record["config"])
    was = json.loads(json.dumps(record["fields"]))
    was["seed"], was["data"]["dir"] = now.seed, now.data.dir
    return config.differences(config.parse_stored(was), config.parse(now))


def row(name: str, record: dict[str, Any]) -> str:
    """A line of the table."""
    per_cent = lambda x: f"{100 * x:.2f}"
    low, high = record["interval"]
    each = ", ".join(per_cent(run["result"]) for run in record["runs"])
    mean_of = lambda key: statistics.fmean(run[key] for run in record["runs"])
    cells = [f"`{record['config']}`", record["metric"], f"{per_cent(record['mean'])} %"]
    cells += [f"{per_cent(low)} to {per_cent(high)}", each, f"{record['parameters']:,}"]
    cells += [f"{mean_of('minutes'):.1f}", f"{mean_of('cpu_minutes'):.1f}", record["date"]]
    return f"| {' | '.join(cells)} |"


def page(text: str, records: dict[str, dict[str, Any]]) -> str:
    """`text` with the table between its two marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = [row(name, record) for name, record in records.items()]
    return "\n".join([before + BEGIN, "", HEAD, *rows, "", END + after])


if __name__ == "__main__":
    sys.exit(run_command(main))
