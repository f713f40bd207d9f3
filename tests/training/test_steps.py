"""Losses, optimizers, schedules, layout: values against formulas and against optax."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from batches import TINY, make_batch
from device_meshes import mesh_of

from vit_jax.data.loader import Batch
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.sections import Optim, Preprocess, Train
from vit_jax.training import losses, optim
from vit_jax.training import mesh as meshes
from vit_jax.training.step import Recipe, State, init_state, normalise, train_step

pytestmark = pytest.mark.usefixtures("optax_dtypes")


def run_steps(model_cfg=TINY, mesh=None, steps=5, optim_cfg=None):
    """The state after some steps on fixed batches, on one device unless `mesh` says otherwise."""
    mesh = mesh or mesh_of(1)
    model = build.build(model_cfg)
    optimizer = optim.make(optim_cfg or Optim(lr=1e-2, warmup_steps=2, weight_decay=0.1, clip_norm=1.0), 10)
    train = Train(steps=10, log_every=100)
    recipe = Recipe(model=model, optimizer=optimizer, preprocess=Preprocess(), seed=0, train=train)
    step = functools.partial(train_step, recipe=recipe)

    def init():
        params = build.init(model, jax.random.key(0), image_hw=(8, 8), channels=3)
        return init_state(params, optimizer)

    with jax.set_mesh(mesh):
        layout = meshes.shardings(jax.eval_shape(init), mesh)
        state = jax.jit(init, out_shardings=layout)()
        step = jax.jit(step, out_shardings=layout)
        for i in range(steps):
            state = step(state, meshes.to_devices(make_batch(i), 8, mesh))
    return state


def test_softmax_cross_entropy_equals_optax():
    logits = jax.random.normal(jax.random.key(0), (6, 5)) * 10
    label = jnp.arange(6) % 5
    wanted = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    # one rounding apart: optax subtracts the label's logit before, we after the sum
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, label), wanted, rtol=1e-6, atol=1e-6)


def test_ties_do_not_count_as_hits():
    constant = jnp.zeros((3, 10))
    label = jnp.array([0, 4, 9])
    assert losses.in_top(constant, label, 1).sum() == 0
    assert losses.in_top(constant, label, 10).sum() == 3


def test_top_k_equals_sorting():
    logits = jax.random.normal(jax.random.key(1), (50, 10))
    label = jax.random.randint(jax.random.key(2), (50,), 0, 10)
    ranks = (-np.asarray(logits)).argsort(axis=1)[:, :5]
    wanted = [int(y) in row for y, row in zip(label, ranks, strict=True)]
    assert losses.in_top(logits, label, 5).tolist() == wanted


def test_normalise_is_the_official_one():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    wanted = (image.astype(np.float32) - 127.5) / 127.5
    # XLA may divide by multiplying with the reciprocal: one rounding
    np.testing.assert_allclose(normalise(jnp.asarray(image), Preprocess(channels=1)), wanted, atol=6e-8)


def test_padding_rows_change_neither_loss_nor_gradient():
    model, optimizer = build.build(TINY), optim.make(Optim(lr=0.1, name="sgd"), 10)
    params = build.init(model, jax.random.key(0), image_hw=(8, 8), channels=3)
    train = Train(steps=10, log_every=1)
    recipe = Recipe(model=model, optimizer=optimizer, preprocess=Preprocess(), seed=0, train=train)
    step = functools.partial(train_step, recipe=recipe)
    full = make_batch(rows=4)
    padded = Batch(
        np.concatenate([full.image, np.full_like(full.image, 200)]),
        np.concatenate([full.label, full.label]),
        np.concatenate([full.weight, np.zeros(4, np.float32)]),
    )
    step = jax.jit(step)
    a, b = (step(init_state(params, optimizer), batch) for batch in (full, padded))
    # the same sum in another order
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a.params, b.params)
    np.testing.assert_allclose(a.window.loss, b.window.loss, rtol=1e-6)
    assert b.window.weight == 4


@pytest.mark.parametrize("fsdp", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 8))])
def test_eight_devices_equal_one(fsdp):
    dropout = dataclasses.replace(TINY, dropout=0.1, stochastic_depth=0.2)
    # SGD: Adam would blow up the rounding of gradients that are 0 in exact arithmetic (the bias of keys)
    sgd = Optim(name="sgd", lr=0.05, warmup_steps=2, weight_decay=0.1, clip_norm=1.0)
    a = run_steps(dropout, optim_cfg=sgd)
    b = run_steps(dropout, mesh=meshes.make("cpu", fsdp), optim_cfg=sgd)
    # sums over devices are taken in another order
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), jax.device_get(a), jax.device_get(b)
    )
    if fsdp > 1:
        kernel = b.params["block_0"]["mlp"]["up"]["kernel"]
        whole, part = kernel.size, kernel.addressable_shards[0].data.size
        assert kernel.size < meshes.SMALLEST_SPLIT or part == whole // fsdp


@pytest.mark.long
def test_bfloat16_keeps_float32_parameters_and_logits():
    state = run_steps(dataclasses.replace(TINY, dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    logits = build.build(dataclasses.replace(TINY, dtype="bfloat16")).apply(
        {"params": state.params}, jnp.zeros((1, 8, 8, 3))
    )
    assert logits.dtype == jnp.float32


def test_the_window_restarts_after_each_log_line():
    model, optimizer = build.build(TINY), optim.make(Optim(), 10)
    params = build.init(model, jax.random.key(0), image_hw=(8, 8), channels=3)
    state = init_state(params, optimizer)
    train = Train(steps=10, log_every=2)
    recipe = Recipe(model=model, optimizer=optimizer, preprocess=Preprocess(), seed=0, train=train)
    step = functools.partial(train_step, recipe=recipe)
    step, weights = jax.jit(step), []
    for i in range(5):
        state = step(state, make_batch(i))
        weights.append(float(state.window.weight))
    assert weights == [8, 16, 8, 16, 8]
    assert isinstance(state, State)


def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match="device=tpu was asked for, but jax finds only cpu"):
        meshes.make("tpu", 1)


def test_a_batch_that_devices_cannot_share_is_an_error():
    with pytest.raises(UserError, match=r"train.batch_size=12 is not a multiple of the 8 devices: use 8"):
        meshes.check_batch("train.batch_size", 12, meshes.make("cpu", 1))
