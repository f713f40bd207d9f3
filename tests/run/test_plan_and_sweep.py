"""What is told before training, many runs at once, and a run from its checkpoint alone."""

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter

import jax
import pytest
from paths import ROOT
from tiny_run import tiny

from vit_jax import config
from vit_jax.data import loader, sources
from vit_jax.errors import UserError
from vit_jax.run import loop, plan, program, rerun, sweep, sweep_points, target
from vit_jax.run.setup import set_up
from vit_jax.training import mesh as meshes
from vit_jax.weights.formats import orbax

pytestmark = pytest.mark.usefixtures("optax_dtypes")


@pytest.fixture(scope="module")
def digits():
    cfg = tiny().data
    return sources.open_splits(cfg)


@pytest.mark.slow
def test_a_plan_foretells_the_run(digits):
    cfg = config.apply(
        tiny(), [f"--config.{x}" for x in ("fsdp=8", "model.width=128", "optim.frozen=^embed")]
    )
    told = plan.make(cfg, digits, limit_bytes=1)
    assert (told.steps, told.batch_per_device) == (60, 4)
    assert told.epochs == pytest.approx(60 * 32 / 1438)
    assert "8 x cpu" in told.devices
    assert told.trained_parameters < told.parameters
    assert told.sharding["block_0/mlp/up/kernel"] == "(128, 32) to (16, 32) on each of 8"
    # Products of a forward pass, by hand: patches, a block on five tokens, one that asks for the class token
    # alone, the head; the rest is small.
    d, f, n = 128, 32, 5
    whole = n * (4 * d * d + 2 * d * f) + 2 * n * n * d
    last = n * 2 * d * d + 2 * d * d + 2 * d * f + 2 * n * d
    products = 4 * 16 * d + whole + last + 10 * d
    assert told.flops_per_image == pytest.approx(3 * 2 * products, rel=0.1)
    assert told.fits is False
    changes = [r["change"] for r in told.remedies]
    assert "--config.train.micro_batches=2" in changes
    assert "--config.train.remat=full" in changes
    assert not any(r["fits"] for r in told.remedies)
    assert "does not fit" in plan.show(told)
    assert json.loads(json.dumps(told._asdict()))["steps"] == 60


NOTHING = program.NO_COST


def test_remedies_are_tried_up_to_the_first_that_fits(digits, monkeypatch):
    needs = iter((1000, 900, 400, 1))
    monkeypatch.setattr(plan, "measure", lambda setup: plan.Measured(next(needs), {}, NOTHING, 1.0))
    told = plan.make(config.apply(tiny(), ["--config.model.width=64"]), digits, limit_bytes=500)
    assert [(r["memory_per_device_bytes"], r["fits"]) for r in told.remedies] == [(900, False), (400, True)]
    assert plan.show(told).endswith(", fits")  # and no speed: devices that are here give no estimate


def test_a_remedy_splits_over_the_chips_of_a_slice_and_has_its_estimate(digits, monkeypatch):
    slices = target.Target("2xv5e-4", target.CHIPS["v5e"], [])
    mesh = meshes.make("cpu", 1)
    monkeypatch.setattr(meshes, "near", lambda devices: len(devices) // 2)
    asked = []
    needs = iter((*[2**40] * 4, 2**20))  # in eight parts the batch is too small
    monkeypatch.setattr(plan, "mesh_of", lambda cfg, target: asked.append(cfg.fsdp) or mesh)
    monkeypatch.setattr(plan, "measure", lambda setup: measured(next(needs)))
    measured = lambda size: plan.Measured(
        size, {}, program.Cost(3_000_000, [], Counter()), 1.0, refused=size > 2**30
    )
    last = plan.make(config.apply(tiny(), ["--config.model.width=64"]), digits, target=slices).remedies[-1]
    assert set(asked) == {1, 4}  # not 8: over the slices the batch is split
    assert (last["change"], last["fits"]) == ("--config.fsdp=4", True)
    assert last["step_s"] == pytest.approx(3e6 / slices.chip.clock_hz)
    assert last["images_per_s"] == pytest.approx(32 / last["step_s"])


@pytest.mark.slow
@pytest.mark.parametrize("fields", [(), ("fsdp=4", "train.scan=true", "optim.ema=0.9")], ids=str)
def test_a_plan_foretells_the_memory_of_the_program_that_trains(digits, fields):
    cfg = config.apply(tiny(), [f"--config.{x}" for x in ("model.width=128", *fields)])
    told = plan.make(cfg, digits)
    mesh = meshes.make(cfg.device, cfg.fsdp)
    size = cfg.train.batch_size
    with jax.set_mesh(mesh):
        setup = set_up(cfg, mesh, digits)
        state = setup.init()
        rows = meshes.host_rows(size, mesh)
        batches = loader.TrainBatches(digits.train, cfg.data, (8, 8), size, 0, 1, rows)
        batch = meshes.to_devices(batches[0], size, mesh)
        m = setup.step.lower(state, batch, None).compile().memory_analysis()
        program_bytes = (
            m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
        )
        # What the arrays really take, the state's in place of the result's, and the program's scratch.
        held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((state, batch)))
    assert told.memory_per_device_bytes == program_bytes
    own = held + m.temp_size_in_bytes
    assert told.memory_per_device_bytes == pytest.approx(own, rel=0.1)


def test_a_sweep_is_a_grid_of_fields(tmp_path):
    (tmp_path / "grid.txt").write_text("config.seed=0,1\n\n")
    points = sweep_points.points(["config.optim.lr=1e-3,3e-3", str(tmp_path / "grid.txt")])
    assert [p.name for p in points] == [
        "000_lr=1e-3_seed=0",
        "001_lr=1e-3_seed=1",
        "002_lr=3e-3_seed=0",
        "003_lr=3e-3_seed=1",
    ]
    assert points[3].arguments == ("--config.optim.lr=3e-3", "--config.seed=1")
    assert [p.arguments for p in sweep_points.points([])] == [()]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["nothing.txt"], "neither config.field=value,value nor a file"),
        (["optim.lr=1"], "write config.field=value,value"),
        (["config.seed=1", "config.seed=2"], "names a field twice"),
        (["config.seed=1,2,1"], "names a value twice"),
    ],
)
def test_a_sweep_that_is_none_is_refused(texts, message):
    with pytest.raises(UserError, match=message):
        sweep_points.points(texts)


@pytest.mark.slow
def test_a_sweep_trains_ranks_and_skips_what_is_finished(tmp_path, capsys):
    cfg = tiny(steps=6, eval_every=0)
    points = [
        (p, config.apply(cfg, list(p.arguments))) for p in sweep_points.points(["config.optim.lr=1e-2,1e9"])
    ]
    with pytest.raises(UserError, match="sweep_index=2 is not one of the 2 runs"):
        sweep.run(points, tmp_path, index=2)
    assert sweep.run(points, tmp_path, index=0) is None
    with (tmp_path / "sweep.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [row["state"] for row in rows] == ["finished", "not begun"]
    sweep.run(points, tmp_path)
    assert "000_lr=1e-2: finished before" in capsys.readouterr().out
    table = (tmp_path / "sweep.md").read_text().splitlines()
    assert len(table) == 4
    assert (tmp_path / "sweep.png").exists()


@pytest.mark.slow
def test_a_sweep_trains_on_what_was_interrupted(tmp_path, capsys, monkeypatch):
    cfg = tiny(steps=6, eval_every=0)
    points = [(p, config.apply(cfg, list(p.arguments))) for p in sweep_points.points(["config.seed=0,1"])]
    second = tmp_path / points[1][0].name
    stops = loop.distributed.stop_signals

    @contextlib.contextmanager
    def after_three_steps_of_the_second():
        with stops() as stop:
            hit = lambda step: signal.SIGTERM if step == 3 and second.exists() else stop(step)
            yield hit

    with monkeypatch.context() as patch:
        patch.setattr(loop.distributed, "stop_signals", after_three_steps_of_the_second)
        assert sweep.run(points, tmp_path) == signal.SIGTERM
    assert not (tmp_path / "sweep.md").exists()
    assert orbax.steps_in(second / "checkpoints") == [3]
    capsys.readouterr()
    assert sweep.run(points, tmp_path) is None
    out = capsys.readouterr().out
    assert "000_seed=0: finished before" in out
    assert "continues after step 3" in out
    with (tmp_path / "sweep.csv").open() as f:
        assert [row["state"] for row in csv.DictReader(f)] == ["finished"] * 2


def test_runs_are_ranked_by_hits_then_loss():
    row = lambda top1, loss: {"top1": top1, "loss": loss}
    rows = [row(math.nan, math.nan), row(0.5, 2.0), row(0.5, 1.0), row(0.9, 3.0)]
    assert [r["loss"] for r in sweep.ranked(rows)[:3]] == [3.0, 1.0, 2.0]


@pytest.mark.slow
def test_a_run_repeats_from_its_checkpoint_alone(tmp_path):
    loop.run(tiny(steps=6, eval_every=0), tmp_path / "first")
    again = rerun.read_config(str(tmp_path / "first"))
    assert again == tiny(steps=6, eval_every=0)
    record = orbax.read_record(tmp_path / "first" / "checkpoints" / "6")
    assert {"argv", "commit", "diff", "versions", "devices"} <= set(record)
    assert len(record["devices"]) == len(jax.devices())
    loop.run(again, tmp_path / "second")
    digests = orbax.read_record(tmp_path / "second" / "checkpoints" / "6")["digests"]
    assert digests == record["digests"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/quickstart.py"], "--workdir is missing"),
        (["--workdir", "x"], "one of --config FILE and --rerun RUN is needed"),
        (["--workdir", "x", "--rerun", "nowhere"], "nowhere is neither a run directory"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(arguments, message):
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "train.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_after_a_run_that_failed_no_process_starts_again(tmp_path, monkeypatch):
    again = []

    def run(cfg, workdir, *, compiled, started):
        compiled(workdir)
        if workdir.name == "001_seed=1":
            raise UserError("not finite")
        return loop.Outcome(1, {}, None)

    monkeypatch.setattr(sweep.loop, "run", run)
    points = [(point, None) for point in sweep_points.points(["config.seed=0,1,2"])]
    sweep.run(points, tmp_path, compiled=lambda workdir: again.append(workdir.name))
    assert again == ["000_seed=0", "001_seed=1"]
