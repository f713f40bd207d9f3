"""Biases for relative positions: their places, what they add, and the images that they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import BEIT
from weight_files import trained_params

from vit_jax.errors import UserError
from vit_jax.models import build, native, relative
from vit_jax.models.attend import attended
from vit_jax.sections import Model
from vit_jax.weights import adapt
from vit_jax.weights.report import Report


def test_a_number_belongs_to_each_distance_and_three_to_the_class_token():
    h, w = 2, 3
    found = relative.places((h, w))
    assert found.shape == (7, 7)
    assert relative.count((h, w)) == 3 * 5 + 3 == found.max() + 1
    where = {}
    for n in range(h * w):
        for m in range(h * w):
            distance = (n // w - m // w, n % w - m % w)
            assert where.setdefault(distance, found[1 + n, 1 + m]) == found[1 + n, 1 + m]
    assert sorted(where.values()) == list(range(15))  # each once, rows before columns
    assert [number for _, number in sorted(where.items())] == list(range(15))
    assert found[0, 0] == 17
    assert set(found[0, 1:]) == {15}
    assert set(found[1:, 0]) == {16}


def test_it_is_added_to_the_scores_and_learned():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 7, 2, 4)).astype(np.float32)) for _ in range(3))
    table_rh = jnp.asarray(rng.normal(size=(relative.count((2, 3)), 2)).astype(np.float32))
    _, p_bhnm = attended(q, k, v, bias_hnm=relative.bias(table_rh, (2, 3)))
    scores = np.einsum("bnhk,bmhk->bhnm", q, k) / 2
    scores += np.asarray(table_rh)[relative.places((2, 3))].transpose(2, 0, 1)
    wanted = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(p_bhnm, wanted, rtol=0, atol=1e-6)  # float32 on both sides
    gradient = jax.grad(lambda t: (attended(q, k, v, bias_hnm=relative.bias(t, (2, 3)))[0] ** 2).sum())
    assert (np.abs(gradient(table_rh)) > 1e-6).all()


def test_other_images_than_those_of_the_table_are_refused():
    cfg = Model(**BEIT)
    params, model = trained_params(cfg), build.build(cfg)
    wanted = r"images of 32x64 pixels do not fit .*, which was learned for 4x4 patches: resize"
    with pytest.raises(UserError, match=wanted):
        model.apply({"params": params}, jnp.zeros((1, 32, 64, 3)))
    assert "model.relative_bias=True takes no images of their own aspect" in native.unable(cfg)
    weights = adapt.Weights(cfg, params, (), None, Report("x", "timm", 0))
    with pytest.raises(UserError, match="fit only the 4x4 patches they were trained on: use image_size=64"):
        adapt.resize(weights, 96)
