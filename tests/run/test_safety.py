"""Steps that go wrong: what they change, who is named, and that earlier checkpoints stay."""

import dataclasses
import errno
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import TINY, make_batch
from tiny_run import tiny

from vit_jax import config
from vit_jax.data import loader, sources
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.run import checkpoint, diagnose, loop
from vit_jax.sections import Optim, Preprocess, Train
from vit_jax.training import guard as guards
from vit_jax.training import optim
from vit_jax.training import step as steps
from vit_jax.weights.formats import orbax

pytestmark = pytest.mark.usefixtures("optax_dtypes")


@pytest.fixture(scope="module")
def fixed():
    """(state, step of some settings, what is common to them)."""
    model, optimizer = build.build(TINY), optim.make(Optim(name="sgd", lr=0.01), 100)
    params = build.init(model, jax.random.key(0), image_hw=(8, 8), channels=3)
    common = {"model": model, "optimizer": optimizer, "preprocess": Preprocess(), "seed": 0}

    def step(**extra):
        recipe = steps.Recipe(**common, train=Train(steps=100, log_every=9, **extra))
        return jax.jit(functools.partial(steps.train_step, recipe=recipe))

    return steps.init_state(params, optimizer), step


def poisoned(batch):
    """The batch with a weight that is not a number."""
    return batch._replace(weight=batch.weight * np.float32("nan"))


def test_bad_steps_are_skipped_and_one_more_halts_with_the_state_before_it(fixed):
    state, make = fixed
    step = make(max_skipped=1)
    sound = step(state, make_batch(0))
    skipped = step(sound, poisoned(make_batch(1)))
    jax.tree.map(np.testing.assert_array_equal, skipped.params, sound.params)
    assert (int(skipped.step), int(skipped.guard.skipped), bool(skipped.guard.halted)) == (2, 1, False)
    halted = step(skipped, poisoned(make_batch(2)))
    assert (int(halted.step), bool(halted.guard.halted)) == (2, True)
    after = step(halted, make_batch(3))
    jax.tree.map(np.testing.assert_array_equal, after, halted)
    on = step(skipped, make_batch(3))
    assert float(on.window.weight) == 16  # of two sound steps
    assert int(on.step) == 3


def test_a_loss_far_above_the_usual_one_is_a_spike(fixed):
    state, make = fixed
    usual = state.guard._replace(usual=jnp.float32(0.1))
    late = state._replace(step=jnp.int32(guards.SPIKE_AFTER), guard=usual)
    step = make(spike=3.0)
    assert bool(step(late, make_batch(0)).guard.halted)
    assert not bool(step(late._replace(step=jnp.int32(1)), make_batch(0)).guard.halted)
    calm = late._replace(guard=usual._replace(usual=jnp.float32(1.0)))
    assert not bool(step(calm, make_batch(0)).guard.halted)


@pytest.mark.parametrize("path", ["block_1/mlp/up", "block_0/norm1", "embed/patch", "head"])
def test_the_first_bad_module_is_named(fixed, path):
    params = jax.tree.map(lambda x: x, fixed[0].params)
    *parents, name = path.split("/")
    node = functools.reduce(lambda tree, key: tree[key], parents, params)
    node[name] = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), node[name])
    image_bhwc = jnp.ones((2, 8, 8, 3))
    assert diagnose.first_bad_module(build.build(TINY), params, image_bhwc) == path
    assert diagnose.first_bad_module(build.build(TINY), fixed[0].params, image_bhwc) is None


@pytest.mark.parametrize("repeats", [1, 2])
def test_example_ids_are_those_that_the_loader_reads(repeats):
    source = sources.arrays(np.zeros((10, 8, 8, 1), np.uint8), np.arange(10), list("0123456789"))
    data = dataclasses.replace(tiny().data, repeats=repeats)
    batches = loader.TrainBatches(source, data, (8, 8), 4, 3, 9, range(4))
    for step in (0, 2, 5):
        assert batches[step].label.tolist() == batches.ids(step)  # in this source the label is the index


@pytest.mark.long
@pytest.mark.parametrize("scan", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_run_that_diverges_in_block_3_stops_names_it_and_keeps_the_state(tmp_path, monkeypatch, scan):
    begin = loop.first_state.begin

    def injected(checkpoints, setup, *weights):
        state, metrics = begin(checkpoints, setup, *weights)
        written_out = setup.forms.unpack(state)
        written_out.params["block_3"]["mlp"]["down"]["bias"] *= jnp.nan
        return setup.forms.pack(written_out), metrics

    monkeypatch.setattr(loop.first_state, "begin", injected)
    cfg = config.apply(tiny(), ["--config.model.depth=4", f"--config.train.scan={scan}"])
    with pytest.raises(UserError, match=r"step 0 is not.*first in block_3/mlp/down; examples \[\d+, ") as e:
        loop.run(cfg, tmp_path)
    assert "\n" not in str(e.value)
    assert orbax.steps_in(tmp_path / "checkpoints") == [0]
    ids = re.search(r"batch of step 0: \[(.*)\]", (tmp_path / "log.txt").read_text())[1].split(", ")
    assert len(ids) == cfg.train.batch_size


@pytest.mark.long
def test_out_of_memory_names_the_knobs_that_help(tmp_path):
    def ends_with(error):
        def compiled(workdir):
            raise error

        with pytest.raises((UserError, jax.errors.JaxRuntimeError)) as told:
            loop.run(tiny(micro_batches=2), tmp_path, compiled=compiled)
        return told.value

    told = ends_with(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes"))
    assert isinstance(told, UserError)
    for knob in ("train.micro_batches=4", "train.remat=full", "fsdp", "--plan"):
        assert knob in str(told)
    other = jax.errors.JaxRuntimeError("INTERNAL: something else")
    assert ends_with(other) is other


def save(directory, step, keep=5):
    checkpoints = checkpoint.Checkpoints(directory, keep=keep)
    checkpoints.save(step, {}, params={"x": jnp.arange(300.0) + step})
    checkpoints.close()


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    save(tmp_path, 1)
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=5)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints._orbax, "save_checkpointables_async", full)
    with pytest.raises(UserError, match=r"cannot save to .*No space left.*earlier checkpoints are intact"):
        checkpoints.save(2, {}, params={"x": jnp.arange(300.0)})
    monkeypatch.undo()
    checkpoints.close()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {"x": jax.ShapeDtypeStruct((300,), jnp.float32, sharding=sharding)}
    record, trees = checkpoint.Checkpoints(tmp_path, keep=5).restore(params=like)
    assert record["step"] == 1
    np.testing.assert_array_equal(trees["params"]["x"], np.arange(300.0) + 1)
