"""Adapters beside frozen kernels: their arithmetic, runs, small checkpoints, and what they are merged to."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import call, digits_run
from device_meshes import mesh_of
from flax.traverse_util import flatten_dict
from tiny_run import signalled_after, tiny

import vit_jax
from vit_jax import config
from vit_jax.cli import convert, info
from vit_jax.data import sources
from vit_jax.errors import UserError
from vit_jax.models import build, lora
from vit_jax.models.stack import stack
from vit_jax.run import distributed, loop, plan
from vit_jax.run.setup import set_up
from vit_jax.sections import Model, Optim
from vit_jax.weights.formats import orbax

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")
MODEL = Model(image_size=8, patch_size=4, width=16, depth=2, heads=2, mlp_width=24, classes=3)
OPTIM = Optim(lora_rank=2, lora_alpha=6.0)


@pytest.fixture(scope="module")
def params():
    model = build.build(MODEL)
    return build.init(model, jax.random.key(0), image_hw=(8, 8), channels=1)


def moved(trained):
    """The same with B other than zero."""
    move = lambda path, x: x + 0.1 if path[-1].key == "lora_b" else x
    return jax.tree_util.tree_map_with_path(move, trained)


def test_adapters_are_products_beside_their_kernels_and_begin_as_nothing(params):
    trained, base = lora.split(params, OPTIM, jax.random.key(1))
    flat, own = flatten_dict(params, sep="/"), flatten_dict(trained, sep="/")
    kernels = {name for name in flat if re.match(r"block_\d/.*kernel$", name)}
    assert {n.removesuffix(lora.A) for n in own if n.endswith(lora.A)} == kernels
    assert own.keys() - {k + x for k in kernels for x in (lora.A, lora.B)} == {"head/kernel", "head/bias"}
    assert flatten_dict(base, sep="/").keys() == flat.keys() - {"head/kernel", "head/bias"}
    query, out = (f"block_1/attention/{name}/kernel" for name in ("query", "out"))
    assert (own[query + lora.A].shape, own[query + lora.B].shape) == ((16, 2), (2, 2, 8))
    assert (own[out + lora.A].shape, own[out + lora.B].shape) == ((2, 8, 2), (2, 16))
    assert jax.tree.all(jax.tree.map(np.array_equal, lora.merge(trained, base, OPTIM), params))
    up = own["block_0/mlp/up/kernel" + lora.A]
    assert abs(float(up.std()) * 4 - 1) < 0.5  # of 32 numbers: variance 1 / 16
    merged = flatten_dict(lora.merge(moved(trained), base, OPTIM), sep="/")
    for name in (query, out, "block_0/mlp/down/kernel"):
        a, b = np.float64(own[name + lora.A]), np.float64(own[name + lora.B]) + 0.1
        shape = flat[name].shape
        wanted = flat[name] + 6 / 2 * (a.reshape(-1, 2) @ b.reshape(2, -1)).reshape(shape)
        np.testing.assert_allclose(merged[name], wanted, atol=1e-6)  # float32
    stacked = lora.merge(stack(moved(trained)), stack(base), OPTIM)
    for a, b in zip(
        *(jax.tree.leaves(t) for t in (stacked, stack(lora.merge(moved(trained), base, OPTIM)))), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)  # float32 products in another order


def test_patterns_choose_kernels_and_what_is_trained_beside_them(params):
    names = lambda **fields: set(
        flatten_dict(lora.split(params, Optim(lora_rank=1, **fields), jax.random.key(0))[0], sep="/")
    )
    only = names(lora_kernels=("attention/value",), trained=("norm", "^head"), frozen=("^head/bias",))
    adapters = {f"block_{i}/attention/value/kernel{x}" for i in range(2) for x in (lora.A, lora.B)}
    norms = {name for name in flatten_dict(params, sep="/") if "norm" in name}
    assert only == adapters | norms | {"head/kernel"}


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    return digits_run(tmp_path_factory.mktemp("init") / "run")


def of(init, *arguments, **train):
    cfg = tiny(**{"steps": 40, "eval_every": 20, **train})
    cfg = dataclasses.replace(cfg, init=str(init), model=dataclasses.replace(cfg.model, mlp_width=16))
    return config.apply(
        cfg,
        [f"--config.{a}" for a in ("optim.lora_rank=2", "optim.lr=0.01", "optim.warmup_steps=1", *arguments)],
    )


@pytest.fixture(scope="module")
def run(init, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    loop.run(of(init, "optim.ema=0.9"), folder)
    return folder


@pytest.mark.long
def test_a_run_learns_and_keeps_little(init, run):
    before = vit_jax.load(init)
    after = vit_jax.load(run)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in steps if "train/loss" in row]
    assert losses[-1] < losses[0]
    was, now = (flatten_dict(x.params, sep="/") for x in (before, after))
    same = {name for name in was if np.array_equal(was[name], now[name])}
    assert same == {name for name in was if not re.match(r"block_\d/.*kernel$|head/", name)}
    record = orbax.read_record(run / "checkpoints" / "40")
    kept = record["shapes"]["params"]
    assert sum(math.prod(map(int, s[8:-1].split(","))) for s in kept.values()) < build.count(before.params)
    assert not any("embed" in name or (name.endswith("['kernel']") and "block" in name) for name in kept)
    line = next(x for x in (run / "log.txt").read_text().splitlines() if "model: " in x)
    assert re.search(r"model: 3,962 parameters, [\d,]+ trained with adapters of rank 2, 10 classes", line), (
        line
    )


@pytest.mark.long
def test_what_is_converted_has_the_merged_logits(run, tmp_path, monkeypatch, capsys):
    loaded = vit_jax.load(run)
    assert call(monkeypatch, capsys, convert, run, tmp_path / "w.npz", "--dialect", "official")[0] == 0
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)), jnp.float32)
    logits = [x.model.apply({"params": x.params}, images) for x in (loaded, vit_jax.load(tmp_path / "w.npz"))]
    np.testing.assert_array_equal(*logits)


@pytest.mark.long
def test_a_run_that_was_stopped_ends_with_the_same_bits(init, run, tmp_path):
    cfg = of(init, "optim.ema=0.9")
    half = tmp_path / "half"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "stop_signals", signalled_after(20))
        assert loop.run(cfg, half).signal == 15
    assert loop.run(cfg, half).step == 40
    ends = [orbax.read_record(folder / "checkpoints" / "40")["digests"] for folder in (run, half)]
    assert ends[0] == ends[1]


@pytest.mark.long
@pytest.mark.parametrize(
    "more",
    [
        ("train.scan=true", "train.remat=full"),
        pytest.param(("train.scan=true",), marks=pytest.mark.slow),
        pytest.param(("train.micro_batches=2",), marks=pytest.mark.slow),
    ],
)
def test_other_forms_of_the_step_take_the_same_way(init, run, tmp_path, more):
    loop.run(of(init, "optim.ema=0.9", "model.dropout=0", *more, steps=3), tmp_path / "a")
    loop.run(of(init, "optim.ema=0.9", "model.dropout=0", steps=3), tmp_path / "b")
    a, b = (flatten_dict(vit_jax.load(tmp_path / x).params, sep="/") for x in "ab")
    for name in b:
        np.testing.assert_allclose(a[name], b[name], atol=1e-5, err_msg=name)  # float32 in another order


@pytest.mark.long
def test_a_run_is_read_where_a_mesh_of_several_devices_is_set(init, run):
    with jax.set_mesh(mesh_of(8)):
        within = [vit_jax.load(ref).params for ref in (init, run)]
    for params, ref in zip(within, (init, run), strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, params, vit_jax.load(ref).params))


@pytest.mark.long
def test_a_base_that_is_gone_or_another_is_one_line(init, tmp_path):
    base = tmp_path / "base.npz"
    vit_jax.save(base, vit_jax.load(init), dialect="official")
    cfg = of(base, steps=2)
    loop.run(cfg, tmp_path / "run")
    whole = base.read_bytes()
    with np.load(base) as file:
        arrays = dict(file)
    arrays["embedding/bias"] = arrays["embedding/bias"] + 1
    np.savez(base, **arrays)
    for use in (
        lambda: vit_jax.load(tmp_path / "run"),
        lambda: loop.run(
            dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, steps=3)),
            tmp_path / "run",
            accept_change=True,
        ),
    ):
        with pytest.raises(
            UserError, match=r"adapters of other weights than init=.*1 arrays differ, such as \['embed'\]"
        ):
            use()
    base.unlink()
    with pytest.raises(UserError, match="which is needed beside them"):
        vit_jax.load(tmp_path / "run")
    base.write_bytes(whole)
    assert vit_jax.load(tmp_path / "run").spec.model.classes == 10
    base.rename(tmp_path / "moved.npz")
    longer = dataclasses.replace(cfg.train, steps=3)
    loop.run(
        dataclasses.replace(cfg, init=str(tmp_path / "moved.npz"), train=longer),
        tmp_path / "run",
        accept_change=True,
    )
    for kept in ("checkpoints", "best"):  # the best is of a step before
        assert vit_jax.load(tmp_path / "run" / kept).spec.model.classes == 10


@pytest.mark.long
def test_a_run_that_is_the_base_is_noted_and_info_tells_it(init, run, monkeypatch, capsys):
    log = (run / "log.txt").read_text()
    assert f"note: adapters need {init}/best/" in log
    out = call(monkeypatch, capsys, info, run)[1]
    assert f"adapters       of rank 2, merged here, beside {init}" in out


def test_fields_that_mean_nothing_are_refused(init, one_device):
    with pytest.raises(UserError, match="lora_rank=2 trains adapters of weights that are there: set init"):
        of("", steps=1)
    data = sources.open_splits(tiny().data)
    for argument, message in (
        (
            "optim.lora_kernels=^nothing",
            r"lora_kernels=.*nothing.* matches no kernel: they are named like block_0/",
        ),
        ("optim.lora_rank=17", r"optim.lora_rank=17 is above 16, the rank of block_0/attention/key/kernel"),
        ("optim.lora_kernels=bias$", r"optim.lora_kernels=bias\$ matches no kernel"),
    ):
        with pytest.raises(UserError, match=message):
            set_up(of(init, argument), one_device, data)
    cfg = of(init, "optim.lora_kernels=^block_1", "optim.layer_decay=0.5")
    with pytest.raises(UserError, match=r"optim.layer_decay with adapters wants them in every block"):
        set_up(cfg, one_device, data)


@pytest.mark.long
def test_a_plan_counts_all_and_what_is_trained(init):
    made = plan.make(of(init), sources.open_splits(tiny().data))
    assert made.parameters == 3962
    assert 0 < made.trained_parameters < 3962
