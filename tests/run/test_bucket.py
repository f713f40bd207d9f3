"""Runs in a bucket: the same numbers as in a folder, after kills and faults too."""

import itertools
import json
import signal

import numpy as np
import pytest
from tiny_run import final_digests, start, tiny, untimed_metrics

import vit_jax
from vit_jax import paths
from vit_jax.cli import main as command
from vit_jax.errors import UserError
from vit_jax.run import lease, loop
from vit_jax.run.rerun import read_config
from vit_jax.run.workdir import metrics_in
from vit_jax.weights.formats import orbax

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")

RUN = "gs://bkt/run"
SHORT = {"steps": 20, "checkpoint_every": 7, "eval_every": 10, "log_every": 10}
ARGUMENTS = [f"--config.train.{name}={value}" for name, value in SHORT.items()]


@pytest.fixture(scope="module")
def local(tmp_path_factory, optax_dtypes, one_device):
    """A run in a folder of this machine."""
    folder = tmp_path_factory.mktemp("local")
    loop.run(tiny(**SHORT), folder)
    return folder


@pytest.fixture
def address(tmp_path):
    """A folder of the test's own."""
    return paths.of(f"gs://bkt/{tmp_path.name}/run")


@pytest.fixture(scope="module")
def run(bucket_server, optax_dtypes, one_device):
    """The same run in a bucket; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket_server.environment.items():
            patch.setenv(name, value)
        loop.run(tiny(**SHORT), paths.of(RUN))
    return paths.of(RUN)


def call(*words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["vit_jax", *map(str, words)])
    code = command.main()
    told = capsys.readouterr()
    return code or 0, told.out, told.err


def test_metrics_of_a_bucket_are_read_without_a_line_that_was_cut(gs, address):
    file = address / "metrics.jsonl"
    assert metrics_in(file) == []
    paths.write(file, '{"step": 1, "train/loss": 0.5}\n{"step": 2, "tra')
    assert metrics_in(file) == [{"step": 1, "train/loss": 0.5}]


@pytest.mark.long
def test_a_run_in_a_bucket_is_that_of_a_folder(gs, run, local):
    assert final_digests(run) == final_digests(local)
    assert untimed_metrics(run) == untimed_metrics(local)
    said = [
        (folder / "log.txt").read_text().replace(str(folder), "RUN").splitlines() for folder in (run, local)
    ]
    assert [len(lines) for lines in said] == [len(said[0])] * 2
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(paths.names_in(run / "tensorboard")) == 1
    assert orbax.steps_in(run / "checkpoints") == orbax.steps_in(local / "checkpoints")


@pytest.mark.long
def test_commands_take_it(gs, run, local, tmp_path, monkeypatch, capsys):
    do = lambda *words: call(*words, monkeypatch=monkeypatch, capsys=capsys)
    code, out, _ = do("info", RUN, "--json")
    assert (code, json.loads(out)["result"]["step"]) == (0, 20)
    code, out, _ = do("evaluate", RUN, "--json", "--save", "gs://bkt/predictions.npz")
    assert (code, json.loads(out)["examples"]) == (0, 359)
    code, out, _ = do("evaluate", RUN, "--compare", "gs://bkt/predictions.npz", "--json")
    assert code == 0
    for kind in (".safetensors", ".npz"):
        code, _, _ = do("convert", RUN, f"gs://bkt/weights{kind}", "--dialect", "big_vision")
        assert code == 0
        there, here = (vit_jax.load(ref, classes=10) for ref in (f"gs://bkt/weights{kind}", local))
        np.testing.assert_array_equal(
            there.params["block_0"]["mlp"]["up"]["kernel"], here.params["block_0"]["mlp"]["up"]["kernel"]
        )


@pytest.mark.long
def test_init_and_rerun_take_it(gs, run, local, tmp_path):
    begun = tiny(steps=10, eval_every=10)
    cfg = vit_jax.config.apply(begun, [f"--config.init={RUN}"])
    there = loop.run(cfg, paths.of("gs://bkt/from_there")).metrics
    here = loop.run(vit_jax.config.apply(begun, [f"--config.init={local}"]), tmp_path / "here").metrics
    assert there == here
    assert read_config(RUN) == tiny(**SHORT)


@pytest.mark.long
def test_another_config_is_refused_and_a_second_run_too(gs, run, monkeypatch):
    with pytest.raises(UserError, match="holds a run of another config"):
        loop.run(tiny(**SHORT | {"steps": 30}), run)
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    with lease.held(run / "claims"), pytest.raises(UserError, match="another process trains in gs://bkt/run"):
        loop.run(tiny(**SHORT), run)


@pytest.mark.slow
def test_an_unsound_step_is_set_aside_and_the_one_before_used(gs, address, config_file):
    loop.run(tiny(**SHORT), address)
    (data,) = paths.files_below(address / "checkpoints/20/params/d")
    whole = paths.read(data.path)
    half = len(whole) // 2
    paths.of(data.path).write_bytes(whole[:half] + bytes(b ^ 1 for b in whole[half:]))
    again = start(config_file, address, *ARGUMENTS)  # this process has the bytes in memory
    out, err = again.communicate()
    assert "using the one before" in out, out + err
    assert paths.names_in(address / "unsound") == ["checkpoints-20"]
    assert (address / "unsound/checkpoints-20/params/_METADATA").exists()
    assert orbax.steps_in(address / "checkpoints") == [14, 20]


@pytest.mark.long
def test_steps_are_listed_by_one_request(run, gs):
    gs.requests.clear()
    assert orbax.steps_in(run / "checkpoints") == [14, 20]
    assert sum(gs.requests.values()) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "403 Forbidden: check your rights"),
        (404, "there is no such bucket"),
        (401, "check your credentials"),
    ],
)
def test_a_bucket_that_refuses_is_one_line(gs, address, status, message):
    gs.fault = lambda method, path: status
    with pytest.raises(UserError, match=f"^{address}.*{message}") as told:
        loop.run(tiny(**SHORT), address)
    assert len(str(told.value).splitlines()) == 1
    with pytest.raises(UserError, match=f"{message}|is not there: check the address"):
        vit_jax.load(address)
    with pytest.raises(UserError, match=message), paths.reached(address):
        orbax.steps_in(address / "checkpoints")


@pytest.mark.slow
def test_a_bucket_that_is_busy_for_a_while_is_waited_for(gs, address, local):
    """Of every 60 requests one is answered 503, whatever it is."""
    count = itertools.count(1)
    gs.fault = lambda method, path: 503 if next(count) % 60 == 0 else None
    loop.run(tiny(**SHORT), address)
    assert final_digests(address) == final_digests(local)
    assert untimed_metrics(address) == untimed_metrics(local)


@pytest.mark.parametrize("text", ["s3://b/x", "az://b", "ftp://h/x"])
def test_an_unknown_scheme_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is no place for files here: give a folder or gs://"):
        vit_jax.train(tiny(), text)
    assert not list(tmp_path.iterdir())


def test_a_missing_client_is_named(monkeypatch):
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://b/x is in a bucket: pip install 'vit_jax\[gcs\]'"):
        paths.of("gs://b/x")


def test_an_address_survives_pathlib(gs):
    import pathlib

    assert str(paths.of(pathlib.Path("gs://bkt/run"))) == "gs://bkt/run"
    with pytest.raises(UserError, match="names no bucket"):
        paths.of("gs://")


@pytest.mark.slow
def test_ten_kills_leave_no_trace(gs, address, config_file, tmp_path):
    """Killed at requests all along the run: among its claims, uploads and saves."""

    def train(folder, kill_at=0):
        count = itertools.count(1)
        with start(config_file, folder, *ARGUMENTS) as process:
            gs.fault = lambda *request: next(count) == kill_at and process.kill()
            out, err = process.communicate()
        assert process.returncode == (-signal.SIGKILL if kill_at else 0), out + err
        return next(count)

    train(tmp_path)
    requests = train(address / "whole")
    for tenth in range(1, 11):
        folder = address / str(tenth)
        train(folder, kill_at=requests * tenth // 11)
        train(folder)
        assert final_digests(folder) == final_digests(tmp_path)
        assert untimed_metrics(folder) == untimed_metrics(tmp_path)
