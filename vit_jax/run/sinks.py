"""The sinks that every run has: console, log.txt, metrics.jsonl, TensorBoard and curves.png."""

import contextlib
import json
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vit_jax import paths
from vit_jax.config import to_dict
from vit_jax.run import loggers
from vit_jax.run.report import Sink
from vit_jax.run.tensorboard import Scalars
from vit_jax.run.workdir import Workdir, metrics_in
from vit_jax.sections import Config
from vit_jax.training.health import Vitals

UPLOAD_S = 60.0  # between copies to a bucket while nothing else asks for one
CURVES = (("loss", ("train/loss", "eval/loss")), ("accuracy", ("train/top1", "eval/top1", "eval/map")))


def of_run(folder: Workdir, cfg: Config, *, step: int, steps: int) -> list[Sink]:
    """Sinks in `folder`, continued after `step` of `steps`: what was written for later steps is dropped.

    Raises UserError for metrics that cannot be read, and for one of `cfg.train.sinks` that cannot be reached.
    """
    upload = Upload(folder) if paths.in_bucket(folder.path) else None
    here = upload.here if upload else Path
    metrics = Metrics(here(folder.metrics), step=step)  # first: nothing is open if it raises
    others = loggers.of_config(cfg, folder, here(folder.metrics))
    log = Log(here(folder.log), steps=steps)
    written = json.dumps(to_dict(cfg), indent=1)
    charts = {name: f"health/{name}/.*" for name in Vitals._fields} if cfg.train.health else {}
    scalars = Scalars(here(folder.tensorboard), step=step + 1, config=written, charts=charts)
    curves = Curves(here(folder.metrics), here(folder.curves))
    own = [Bar(step=step, steps=steps), log, metrics, scalars, curves, *others]
    return [*own, upload] if upload else own


def summary(step: int, steps: int, values: dict[str, float]) -> str:
    """Training's values on one line; empty for others."""
    if "train/loss" not in values:
        return ""
    text = f"loss {values['train/loss']:.4f}  accuracy {values['train/top1']:.2%}"
    return f"step {step}/{steps}  {text}  {values['train/images_per_s']:,.0f} images/s"


class Bar(Sink):
    """A live bar on the console, or plain lines where that is no terminal."""

    def __init__(self, *, step: int, steps: int) -> None:
        self._steps = steps
        # force_jupyter=False: in a notebook lines go to one output, not to a piece of HTML each
        self._console = Console(highlight=False, soft_wrap=True, force_jupyter=False)
        self._live = sys.stdout.isatty()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, disable=not self._live)
        self._task = self._progress.add_task("training", total=steps, completed=step)
        self._progress.start()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Move the bar."""
        text = summary(step, self._steps, values)
        if text and self._live:
            self._progress.update(self._task, completed=step, description=text)
        elif text:
            self.say(text)

    def say(self, line: str) -> None:
        """Print above the bar."""
        self._console.print(line, markup=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()


class Log(Sink):
    """The lines of the console, in a file."""

    def __init__(self, path: Path, *, steps: int) -> None:
        self._file, self._steps = path.open("a", buffering=1, encoding="utf-8"), steps

    def add(self, step: int, values: dict[str, float]) -> None:
        """One line, of training's values."""
        if text := summary(step, self._steps, values):
            self.say(text)

    def say(self, line: str) -> None:
        """One line."""
        self._file.write(line + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def reached(path: paths.Path) -> int:
    """The last step that metrics in a file tell of; 0 without any. Raises UserError if they are damaged."""
    return max((row["step"] for row in metrics_in(path)), default=0)


class Metrics(Sink):
    """One JSON object a line, each written at once."""

    def __init__(self, path: Path, *, step: int) -> None:
        """Drop lines after `step`, and a last one that a kill cut off. Raises UserError for other damage."""
        self._path = path
        if not path.exists():
            return
        rows, lines = metrics_in(path), path.read_text().splitlines(keepends=True)
        kept = [line for row, line in zip(rows, lines, strict=False) if row["step"] <= step]  # as they are
        part = path.with_suffix(".tmp")
        part.write_text("".join(kept))
        part.replace(path)

    def add(self, step: int, values: dict[str, float]) -> None:
        """One line."""
        with self._path.open("a") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")


class Curves(Sink):
    """A picture of the metrics in a file of lines, drawn in the background in a tenth of the time at most."""

    def __init__(self, metrics: Path, path: Path) -> None:
        self._metrics, self._path = metrics, path
        self._news = metrics.exists()  # since the last drawing
        self._drawing: Future[float] | None = None
        self._next = 0.0
        self._artist = ThreadPoolExecutor(1, thread_name_prefix="curves")

    def add(self, step: int, values: dict[str, float]) -> None:
        """Note that there is something to draw."""
        self._news = True

    def flush(self) -> None:
        """Begin to draw what is new, unless it is too soon. Raises OSError if that failed the time before."""
        if self._drawing is not None and self._drawing.done():
            self._finish()
        if self._drawing is None and time.monotonic() >= self._next:
            self._begin()

    def close(self) -> None:
        """Draw what is new. Raises OSError if it fails."""
        with self._artist:
            self._finish()
            self._begin()
            self._finish()

    def _begin(self) -> None:
        if self._news:
            self._news = False
            self._drawing = self._artist.submit(_draw, metrics_in(self._metrics), self._path)

    def _finish(self) -> None:
        if self._drawing is not None:
            drawing, self._drawing = self._drawing, None
            self._next = drawing.result()


class Upload(Sink):
    """Copies what the other sinks write on this machine to a folder of a bucket, which has no append.

    Files are copied whole, when they have changed: those of 100,000 steps are a few MB.
    """

    def __init__(self, folder: Workdir) -> None:
        self._to = folder.path
        self._spool = TemporaryDirectory(prefix="vit_jax-")
        self._sent: dict[Path, tuple[int, int]] = {}
        self._next = time.monotonic() + UPLOAD_S
        for file in (folder.metrics, folder.log):  # which are continued
            if file.exists():
                self.here(file).write_bytes(file.read_bytes())

    def here(self, path: paths.Path) -> Path:
        """Where a file or folder of the run's folder is written on this machine."""
        return Path(self._spool.name, path.name)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Copy now and then; what a bucket does not take now, it gets later."""
        if time.monotonic() >= self._next:
            with contextlib.suppress(Exception):
                self.flush()

    def flush(self) -> None:
        """Copy what has changed. Raises UserError if the bucket does not take it."""
        self._next = time.monotonic() + UPLOAD_S
        with paths.reached(self._to):
            for file in sorted(Path(self._spool.name).rglob("*")):
                state = (file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None
                if state and self._sent.get(file) != state and file.suffix != ".tmp":
                    paths.upload(file, self._to / file.relative_to(self._spool.name).as_posix())
                    self._sent[file] = state

    def close(self) -> None:
        """Copy the last of it. Raises UserError if the bucket does not take it."""
        try:
            self.flush()
        finally:
            self._spool.cleanup()


def _draw(lines: list[dict[str, float]], path: Path) -> float:
    """The moment from which the next drawing leaves nine tenths of the time to others."""
    begun = time.monotonic()
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
            axes.legend(loc="center right")  # to look for the best place takes long, with a warning
    part = path.with_suffix(".tmp")
    figure.savefig(part, dpi=100, format="png")
    part.replace(path)
    return begun + 10 * (time.monotonic() - begun)
