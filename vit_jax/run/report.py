"""Reports of a run: console, log.txt, metrics.jsonl, TensorBoard and curves.png. One process writes."""

import json
import logging
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vit_jax.errors import UserError
from vit_jax.run.tensorboard import Scalars
from vit_jax.run.workdir import Workdir

CURVES = (("loss", ("train/loss", "eval/loss")), ("accuracy", ("train/top1", "eval/top1")))


class Reporter:
    """Writes of one run in `folder`, continued after `step`: what was written for later steps is dropped."""

    def __init__(self, folder: Workdir, *, step: int, steps: int, active: bool) -> None:
        self._active = active
        if not active:
            return
        self._metrics, self._curves = folder.metrics, folder.curves
        _keep_until(self._metrics, step)  # may raise: nothing is open yet
        self._console = Console(highlight=False, soft_wrap=True)
        self._live = sys.stdout.isatty()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, disable=not self._live)
        self._task = self._progress.add_task("training", total=steps, completed=step)
        self._log = folder.log.open("a", buffering=1)
        self._news = self._metrics.exists()  # since the last drawing
        self._drawing: Future[None] | None = None
        self._artist = ThreadPoolExecutor(1, thread_name_prefix="curves")
        self._tensorboard = Scalars(folder.tensorboard, step=step + 1)
        self._progress.start()
        self._warnings = _Lines(self)
        self._logger = logging.getLogger("vit_jax")
        self._logger.addHandler(self._warnings)
        self._logger.propagate = False  # the root's handler would print them again

    def say(self, text: str) -> None:
        """One line to the console and to log.txt."""
        if self._active:
            self._console.print(text, markup=False)
            self._log.write(text + "\n")

    def record(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, flushed, and the same to TensorBoard."""
        if not self._active:
            return
        self._news = True
        with self._metrics.open("a") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")
        self._tensorboard.add(step, values)

    def advance(self, step: int, text: str) -> None:
        """The live bar, or a plain line where there is no terminal."""
        if not self._active:
            return
        if self._live:
            self._progress.update(self._task, completed=step, description=text)
            self._log.write(text + "\n")
        else:
            self.say(text)

    def curves(self) -> None:
        """Draw curves.png from metrics.jsonl, in the background, if there is anything new.

        Raises OSError if that failed the time before.
        """
        if self._active and self._news:
            self._news = False
            self._tensorboard.flush()
            self._finish_drawing()
            lines = [json.loads(line) for line in self._metrics.read_text().splitlines()]
            self._drawing = self._artist.submit(_draw, lines, self._curves)

    def _finish_drawing(self) -> None:
        if self._drawing is not None:
            drawing, self._drawing = self._drawing, None
            drawing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: Any, trace: TracebackType | None) -> None:
        if not self._active:
            return
        self._logger.removeHandler(self._warnings)
        self._logger.propagate = True
        self._progress.stop()
        self._tensorboard.close()
        self._log.close()
        self._artist.shutdown()
        if kind is None:
            self._finish_drawing()


class _Lines(logging.Handler):
    """Warnings of the rooms below, such as a skipped image, among the lines of the run."""

    def __init__(self, report: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report.say(record.getMessage())


def _keep_until(metrics: Path, step: int) -> None:
    """Drop lines after `step`, and a last line that a kill cut off. Raises UserError for other damage."""
    if not metrics.exists():
        return
    try:
        whole = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = "".join(line for line in whole if json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{metrics} cannot be read ({e}): remove what is wrong in it, or all of it") from e
    part = metrics.with_suffix(".tmp")
    part.write_text(kept)
    part.replace(metrics)


def _draw(lines: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(10, 4))
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.12, top=0.92, wspace=0.15)
    for axes, (title, names) in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 30 else None)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    part = path.with_suffix(".tmp")
    figure.savefig(part, dpi=100, format="png")
    part.replace(path)
