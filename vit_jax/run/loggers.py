"""The sinks that `train.sinks` names: a CSV table, Weights & Biases, MLflow.

metrics.jsonl has every step once, whatever was killed in between, so each sink first gets the steps it lacks
from that file, and never a step twice.
"""

import contextlib
import csv
import importlib.util
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from vit_jax import paths
from vit_jax.config import to_dict
from vit_jax.errors import UserError, first_line
from vit_jax.run.report import Sink
from vit_jax.run.workdir import Workdir, metrics_in
from vit_jax.sections import Config

EXTRAS = ("wandb", "mlflow")  # of the package, by the name of the module, too
PROJECT = "vit_jax"  # where $WANDB_PROJECT and $MLFLOW_EXPERIMENT_NAME say nothing else
Row = tuple[int, dict[str, float]]


def check(names: Sequence[str]) -> None:
    """Raise UserError for a sink whose package is not installed."""
    for name in EXTRAS:
        if name in names:
            found = importlib.util.find_spec(name)
            if found is None or not found.origin:  # a folder of that name, as W&B makes them, is no package
                raise UserError(f"train.sinks={name} needs the package: pip install 'vit_jax[{name}]'")


def of_config(cfg: Config, folder: Workdir, metrics: Path) -> list[Sink]:
    """The sinks of `cfg.train.sinks`; `metrics` is metrics.jsonl on this machine, without lines to repeat.

    Raises UserError if one cannot be reached.
    """
    rows = [(row.pop("step"), row) for row in metrics_in(metrics)]
    made: dict[str, Any] = {
        "csv": lambda: Csv(metrics, metrics.with_suffix(".csv")),
        "wandb": lambda: Wandb(cfg, folder, rows),
        "mlflow": lambda: Mlflow(cfg, folder, rows),
    }
    return [made[name]() for name in dict.fromkeys(cfg.train.sinks)]


class Csv(Sink):
    """The lines of metrics.jsonl as one table, a row each, written anew at each flush."""

    def __init__(self, metrics: Path, path: Path) -> None:
        self._metrics, self._path = metrics, path

    def flush(self) -> None:
        """Write the whole table under another name, then rename it."""
        if not self._metrics.exists():
            return
        rows = metrics_in(self._metrics)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
        part = self._path.with_suffix(".tmp")
        part.write_text(text.getvalue())
        part.replace(self._path)


class Wandb(Sink):
    """One run of Weights & Biases; an offline one is a folder that each process makes anew, from all rows.

    Raises UserError if it cannot begin.
    """

    def __init__(self, cfg: Config, folder: Workdir, rows: Sequence[Row]) -> None:
        import wandb  # pyright: ignore - an extra

        bucket = paths.in_bucket(folder.path)
        place = Path(mkdtemp(prefix="vit_jax-wandb-") if bucket else folder.path)
        name = _known(folder, "wandb", lambda: secrets.token_hex(8))
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        with _one_line("wandb"):
            quiet = wandb.Settings(console="off", silent=True)
            self._run: Any = wandb.init(
                id=name,
                dir=str(place),
                config=to_dict(cfg),
                resume="allow",
                settings=quiet,
                project=project,
                name=folder.path.name,
            )
        self._held = self._run.step - 1 if self._run.resumed else -1
        if self._run.offline and bucket:
            self._run.finish()
            raise UserError("train.sinks=wandb: an offline run is a folder on a disk: give such a --workdir")
        if self._run.offline:
            for old in place.glob(f"wandb/offline-run-*-{name}"):
                if old.resolve() != Path(self._run.dir).parent.resolve():
                    shutil.rmtree(old)
        for step, values in rows:
            self.add(step, values)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Log at `step`, unless an earlier process has."""
        if step > self._held:
            with _one_line("wandb"):
                self._run.log(values, step=step)

    def close(self) -> None:
        """Wait until all is written or sent."""
        with _one_line("wandb"):
            self._run.finish()


class Mlflow(Sink):
    """One run of MLflow, at $MLFLOW_TRACKING_URI or in the folder's mlruns/.

    Raises UserError if it cannot begin.
    """

    def __init__(self, cfg: Config, folder: Workdir, rows: Sequence[Row]) -> None:
        from mlflow.tracking import MlflowClient  # pyright: ignore - an extra

        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri and paths.in_bucket(folder.path):
            raise UserError("train.sinks=mlflow: a bucket cannot hold its store: set MLFLOW_TRACKING_URI")
        if not uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow asks for it since version 3
            uri = (Path(folder.path) / "mlruns").absolute().as_uri()
        with _one_line("mlflow"):
            self._client: Any = MlflowClient(tracking_uri=uri)
            self._id = _known(folder, "mlflow", lambda: self._begin(cfg, folder.path.name))
            self._client.update_run(self._id, status="RUNNING")
            names = self._client.get_run(self._id).data.metrics
            history = {name: self._client.get_metric_history(self._id, name) for name in names}
        self._held = {name: max(metric.step for metric in found) for name, found in history.items()}
        for step, values in rows:
            self.add(step, values)

    def _begin(self, cfg: Config, name: str) -> str:
        from mlflow.entities import Param  # pyright: ignore - an extra

        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self._client.create_experiment(experiment)
        begun = self._client.create_run(where, run_name=name)
        params = [Param(name, str(value)) for name, value in _flat(to_dict(cfg))]
        for first in range(0, len(params), 100):  # as many as the server takes at once
            self._client.log_batch(begun.info.run_id, params=params[first : first + 100])
        return begun.info.run_id

    def add(self, step: int, values: dict[str, float]) -> None:
        """Log at `step` each value that the store has not for it."""
        from mlflow.entities import Metric  # pyright: ignore - an extra

        now = int(time.time() * 1000)
        new = {name: value for name, value in values.items() if step > self._held.get(name, -1)}
        if new:
            with _one_line("mlflow"):
                metrics = [Metric(name, float(value), now, step) for name, value in new.items()]
                self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """Say that nothing more comes."""
        with _one_line("mlflow"):
            self._client.set_terminated(self._id)


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _known(folder: Workdir, service: str, begin: Any) -> str:
    """The name that a service knows the folder's run by, made by `begin` if there is none yet."""
    names = json.loads(folder.loggers.read_text()) if folder.loggers.exists() else {}
    if service not in names:
        names[service] = begin()
        paths.write(folder.loggers, json.dumps(names))
    return names[service]


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Raises UserError for whatever a service raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        raise UserError(
            f"train.sinks={name}: {first_line(e)}; the same command continues, or leave it out"
        ) from e
