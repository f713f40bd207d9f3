"""One checkpoint at any patch size: the pseudo-inverse, the drawn sizes of steps, and the frontier."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from batches import TINY, make_batch

from vit_jax import config
from vit_jax.analysis.frontier import frontier
from vit_jax.errors import UserError
from vit_jax.models import build, flexi
from vit_jax.sections import Preprocess, Train
from vit_jax.training.step import Recipe, init_state, train_step
from vit_jax.weights import adapt
from vit_jax.weights.adapt import Weights, Wish
from vit_jax.weights.report import Report

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")
CFG = dataclasses.replace(TINY, depth=1)
SIZES, STEPS = (2, 4, 8), 12


def kernel(size: int) -> np.ndarray:
    return np.random.default_rng(size).normal(size=(size, size, 3, 5)).astype(np.float32)


def resizing(old: int, new: int) -> np.ndarray:
    """B of the paper, [new*new, old*old]: what jax.image makes of each pixel alone.

    Linear at half-pixel centres without antialiasing, as `tf.image.resize` in big_vision's resample_patchemb.
    """
    pixels = np.eye(old * old).reshape(-1, old, old)
    with jax.enable_x64(True):
        seen = jax.image.resize(pixels, (old * old, new, new), "linear", antialias=False)
    return np.asarray(seen).reshape(old * old, new * new).T


@pytest.mark.parametrize(("old", "new"), [(4, 8), (8, 4), (16, 6), (5, 7), (3, 3)])
def test_a_kernel_is_resized_by_the_papers_formula(old, new):
    w = kernel(old)
    wanted = np.linalg.pinv(resizing(old, new).T) @ w.reshape(old * old, -1)
    wanted = wanted.reshape(new, new, 3, 5)
    # One rounding of float32 for values near one; in the program, of each of two sums.
    np.testing.assert_allclose(flexi.resize(w, new), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(flexi.resize_in_program(jnp.asarray(w), new), wanted, rtol=0, atol=5e-6)


def test_larger_patches_give_the_very_tokens_of_the_smaller_ones():
    patch = np.random.default_rng(0).normal(size=16)
    token = patch @ kernel(4)[:, :, 0].reshape(16, -1)
    larger = resizing(4, 8) @ patch
    got = larger @ flexi.resize(kernel(4), 8)[:, :, 0].reshape(64, -1)
    np.testing.assert_allclose(got, token, rtol=0, atol=1e-5)  # float32 weights, sums of 64


def weights(**fields) -> Weights:
    cfg = dataclasses.replace(CFG, **fields)
    params = build.init(build.build(cfg), jax.random.key(0), image_hw=cfg.image_hw, channels=3)
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    return Weights(cfg, jax.device_get(params), (), Preprocess(), Report("", "", 0))


def test_a_model_at_another_patch_size_is_the_one_loaded_for_it():
    own, images = weights(), jax.random.normal(jax.random.key(2), (2, 8, 8, 3))
    answers = []
    for size in SIZES:
        loaded = adapt.to(own, Wish(patch_size=size))
        assert loaded.model.patch_size == size
        wanted = jax.jit(build.build(loaded.model).apply)({"params": loaded.params}, images)
        model = build.build(own.model).clone(patch_size=size)
        answers.append(np.asarray(jax.jit(model.apply)({"params": own.params}, images)))
        # Resized in float32 in the program, in float64 on loading: a rounding of the largest logit.
        np.testing.assert_allclose(answers[-1], wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    assert len({answer.tobytes() for answer in answers}) == len(SIZES)


def test_bad_sizes_are_refused():
    for size in (0, (0, 32), (32, -1)):
        with pytest.raises(UserError, match=rf"image_size={re.escape(str(size))} must be at least 1"):
            Wish(image_size=size)
    with pytest.raises(UserError, match="patch_size=0 must be at least 1"):
        Wish(patch_size=0)
    with pytest.raises(
        UserError, match=r"model.image_size=8 is not a multiple of model.patch_size=3: use 6 or 9"
    ):
        adapt.to(weights(), Wish(patch_size=3))
    mixer = {"family": "mixer", "heads": 1, "class_token": False, "pooling": "gap", "posemb": "none"}
    with pytest.raises(UserError, match="a Mixer's weights fit only the 2x2 patches"):
        adapt.to(weights(**mixer, token_width=4, dropout=0.0), Wish(patch_size=2))
    tree = config.default()
    tree.model.update(image_size=16, patch_size=4)
    tree.train.update(steps=1, patch_sizes=(4, 5))
    with pytest.raises(
        UserError, match=r"train.patch_sizes=\(4, 5\): model.image_size=16 is not a multiple of 5"
    ):
        config.parse(tree)
    tree.model.update(mixer, token_width=8)
    tree.train.patch_sizes = (4,)
    with pytest.raises(UserError, match=r"is not for model.family=mixer, whose count of patches is fixed"):
        config.parse(tree)


def gradients(patch_sizes: tuple[int, ...], patch_size: int = 0) -> list[Any]:
    """The parameters after each of some steps, all from the same state, by SGD of rate 1."""
    model = build.build(CFG).clone(patch_size=patch_size)
    optimizer = optax.sgd(1.0)
    train = Train(steps=10, patch_sizes=patch_sizes)
    recipe = Recipe(model=model, optimizer=optimizer, preprocess=Preprocess(), seed=0, train=train)
    state = init_state(jax.tree.map(jnp.asarray, weights().params), optimizer)
    step = jax.jit(functools.partial(train_step, recipe=recipe))
    batch, count = make_batch(0), STEPS if patch_sizes else 1
    return [step(state._replace(step=jnp.int32(i)), batch).params for i in range(count)]


def test_each_step_is_that_of_the_model_at_one_drawn_size():
    alone = {size: gradients((), size)[0] for size in SIZES}

    def close(one: Any, other: Any) -> bool:
        # The same sums, in a program with two other branches.
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        return all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)

    drawn = [[size for size in SIZES if close(params, alone[size])] for params in gradients(SIZES)]
    assert [len(sizes) for sizes in drawn] == [1] * STEPS
    assert {size for (size,) in drawn} == set(SIZES)


def test_the_frontier_is_what_nothing_beats():
    assert frontier([0.9, 0.8, 0.7, 0.9], [3.0, 1.0, 2.0, 4.0]) == [True, True, False, False]
    assert frontier([0.5, 0.5], [1.0, 1.0]) == [True, True]
