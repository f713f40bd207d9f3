"""Many runs of one config, each in its own directory, and one ranked table."""

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax import paths
from vit_jax.errors import UserError
from vit_jax.paths import Path
from vit_jax.run import loop
from vit_jax.run.sweep_points import Point
from vit_jax.run.workdir import Workdir
from vit_jax.sections import Config
from vit_jax.weights.formats import orbax

COLUMNS = ("rank", "run", "state", "step", "top1", "macro", "loss")


def run(
    points: Sequence[tuple[Point, Config]],
    workdir: Path,
    *,
    index: int | None = None,
    compiled: Callable[[Path], None] = lambda workdir: None,
    started: float | None = None,
) -> int | None:
    """Train each point, or that of `index` alone, then write the table. Returns a signal that ended it early.

    A finished run is skipped, an interrupted one continued; the table says which failed. `compiled` is called
    for each run as `loop.run` says, which also takes when the process `started`.
    """
    if index is not None and not 0 <= index < len(points):
        raise UserError(f"--sweep_index={index} is not one of the {len(points)} runs, 0 to {len(points) - 1}")
    for point, cfg in points if index is None else [points[index]]:
        if _row(point, workdir)["state"] == "finished":
            print(f"{point.name}: finished before", flush=True)
            continue
        print(f"{point.name}: {' '.join(point.arguments)}", flush=True)
        try:
            outcome = loop.run(cfg, workdir / point.name, compiled=compiled, started=started)
        except UserError as e:
            if index is not None:
                raise
            print(f"{point.name}: {e}", flush=True)
            compiled = lambda workdir: None  # a process that starts again would try this run again
            continue
        finally:
            started = started and time.monotonic()  # the next run begins here
        if outcome.signal:
            return outcome.signal
    rows = ranked([_row(point, workdir) for point, _ in points])
    write(rows, workdir)
    print((workdir / "sweep.md").read_text(encoding="utf-8"), flush=True)
    return None


def ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best top-1 first, then smallest loss; runs without an evaluation last."""
    key = lambda row: (
        math.isnan(row["top1"]),
        -row["top1"] if row["top1"] == row["top1"] else 0,
        row["loss"],
    )
    return [{"rank": i} | row for i, row in enumerate(sorted(rows, key=key), start=1)]


def write(rows: list[dict[str, Any]], workdir: Path) -> None:
    """sweep.csv, sweep.md and sweep.png of ranked rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list[str](COLUMNS))
    writer.writeheader()
    writer.writerows(rows)
    paths.write(workdir / "sweep.csv", text.getvalue())
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    body = [f"| {' | '.join(_cell(row[c]) for c in COLUMNS)} |" for row in rows]
    paths.write(workdir / "sweep.md", "\n".join([*head, *body]) + "\n")
    _plot(rows, workdir / "sweep.png")


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(8, 1.5 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    shown = [row for row in reversed(rows) if not math.isnan(row["top1"])]
    axes.barh([row["run"] for row in shown], [row["top1"] for row in shown])
    axes.set(xlabel="top-1", title="sweep")
    with paths.replacing(path) as file:
        figure.savefig(file, dpi=100, format="png")


def _row(point: Point, workdir: Path) -> dict[str, Any]:
    none = {
        "run": point.name,
        "state": "not begun",
        "step": 0,
        "top1": math.nan,
        "macro": math.nan,
        "loss": math.nan,
    }
    folder = Workdir(workdir / point.name).checkpoints
    steps = orbax.steps_in(folder)
    if not steps:
        return none
    try:
        record = orbax.read_record(folder / str(steps[-1]))
    except UserError:
        return none | {"state": "interrupted"}
    ended = record["step"] == record["steps"] or record.get("patience", {}).get("ended", False)
    state = "finished" if ended else "interrupted"
    metrics = {k: v for k, v in record["metrics"].items() if k in none}
    return none | {"state": state, "step": record["step"]} | metrics


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
