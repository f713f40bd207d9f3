"""The sinks of train.sinks hold each metric once a step, after a kill and a resume too."""

import csv
import importlib.util
import json
import struct
from collections import Counter

import pytest
from tiny_run import CONFIG_FILE, read_until, start, tiny

import vit_jax
from vit_jax import config
from vit_jax.errors import UserError
from vit_jax.run import loggers, loop

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")


class Fails(vit_jax.Sink):
    """Ends the run at a step, after the other sinks were told of it."""

    def add(self, step, values):
        if step == 5:
            raise RuntimeError("killed")


def killed_and_continued(name, workdir):
    """Rows of metrics.jsonl of a run that `name` was told of: steps 4 and 5 twice, since 3 was saved."""
    cfg = tiny(steps=6, eval_every=2, log_every=1, checkpoint_every=3)
    fields = (f"train.sinks={name}", "model.depth=1", "model.dropout=0")
    cfg = config.apply(cfg, [f"--config.{field}" for field in fields])
    with pytest.raises(RuntimeError, match="killed"):
        loop.run(cfg, workdir, sinks=[Fails()])
    loop.run(cfg, workdir)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def flat(rows):
    """{(name, step): value} of rows, of which each is there once."""
    pairs = [((name, row["step"]), value) for row in rows for name, value in row.items() if name != "step"]
    assert max(Counter(key for key, _ in pairs).values()) == 1
    return dict(pairs)


def timeless(values):
    """Without what another process measures otherwise."""
    return {key: v for key, v in values.items() if not key[0].startswith(("time/", "train/images_per_s"))}


@pytest.mark.long
def test_a_table_has_each_line_once_after_a_kill(tmp_path):
    rows = killed_and_continued("csv", tmp_path)
    table = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [{k: float(v) for k, v in row.items() if v} for row in table] == rows
    assert "train/lr" in table[0]
    assert "eval/top1" in table[0]


def told_to_mlflow(workdir):
    """The rows of the one run in its store."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(workdir / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("vit_jax").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.001"
    return [
        {"step": m.step, m.key: m.value}
        for name in run.data.metrics
        for m in client.get_metric_history(run.info.run_id, name)
    ]


def test_mlflow_has_each_metric_once_a_step_after_a_kill(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    rows = killed_and_continued("mlflow", tmp_path)
    told = told_to_mlflow(tmp_path)
    assert timeless(flat(told)) == timeless(flat(rows))
    assert flat(told).keys() >= {key for key in flat(rows) if key[1] > 3}


BLOCK, HEADER, WHOLE, LAST = 32768, 7, 1, 4  # of LevelDB's log format, in which W&B writes


def records(path):
    """The records of an offline file of W&B, as bytes."""
    data, at, parts = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK  # the rest of a block is filled up
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""


def told_to_wandb(workdir):
    """The rows of the one offline run."""
    from wandb.proto import wandb_internal_pb2

    (folder,) = workdir.glob("wandb/offline-run-*")
    (file,) = folder.glob("*.wandb")
    told, fields = [], {}
    for data in records(file):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            values = {k: v for k, v in items.items() if not k.startswith("_")}
            told.append({"step": items["_step"], **values})
        if record.WhichOneof("record_type") == "run":
            fields |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.run.config.update}
    assert fields["optim"]["lr"] == 1e-3
    return told


def test_an_offline_folder_of_wandb_has_each_metric_once_a_step_after_a_kill(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    rows = killed_and_continued("wandb", tmp_path)
    assert flat(told_to_wandb(tmp_path)) == flat(rows)


@pytest.mark.slow
def test_processes_that_are_killed_leave_each_metric_once_a_step(tmp_path, monkeypatch):
    for name in loggers.EXTRAS:
        pytest.importorskip(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    file, workdir = tmp_path / "tiny.py", tmp_path / "run"
    file.write_text(CONFIG_FILE)
    fields = ("train.sinks=csv,wandb,mlflow", "train.steps=20", "train.eval_every=5", "model.depth=1")
    arguments = [f"--config.{field}" for field in fields]  # checkpoints 7, 14 and 20
    for line in ("^step 5: evaluation", "^step 10/", "^step 13/"):
        process = start(file, workdir, *arguments)
        read_until(process, line)
        process.kill()
        process.communicate()
    process = start(file, workdir, *arguments)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == set(range(1, 21))
    assert flat(told_to_wandb(workdir)) == flat(rows)
    assert timeless(flat(told_to_mlflow(workdir))) == timeless(flat(rows))
    assert len((workdir / "metrics.csv").read_text().splitlines()) == 1 + len(rows)


def test_what_is_not_installed_or_unknown_is_one_line(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(UserError, match=r"=wandb needs the package: pip install 'vit_jax\[wandb\]'"):
        loop.run(config.apply(tiny(), ["--config.train.sinks=wandb"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"train.sinks='tensorbord' is not one of csv, wandb, mlflow"):
        config.apply(tiny(), ["--config.train.sinks=csv,tensorbord"])
    monkeypatch.undo()
    (tmp_path / "wandb").mkdir()  # as W&B leaves one behind where it runs
    monkeypatch.syspath_prepend(str(tmp_path))
    if find("wandb").origin is None:
        with pytest.raises(UserError, match="needs the package"):
            loggers.check(["wandb"])


def test_a_service_that_fails_is_one_line():
    told = r"train.sinks=mlflow: no route; the same command continues"
    with pytest.raises(UserError, match=told) as e, loggers._one_line("mlflow"):
        raise OSError("no route\nto host")
    assert "\n" not in str(e.value)
