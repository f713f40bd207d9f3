"""Probes of frozen features: a plain reference for each method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from vit_jax.analysis import probes

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")

CLASSES = 4


def clusters(n, width, seed, spread=1.0):
    """Features around one centre a class, and their labels."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, width))
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, n).astype(np.int32)
    return (centres[label] + spread * rng.normal(size=(n, width))).astype(np.float32), label


# Linear heads

RATES, DECAYS = np.array([0.01, 0.1, 0.5, 0.1]), np.array([0.0, 0.0, 1e-2, 0.3])


@pytest.fixture(scope="module")
def trained():
    """Two columns of unlike width with four heads each, and what they were trained on."""
    (wide, label), (narrow, _) = clusters(300, 6, 1), clusters(300, 3, 1)
    order = probes.batches(300, batch_size=32, epochs=3, seed=0)
    grid = [jnp.asarray(values, jnp.float32) for values in (RATES, DECAYS)]
    heads = probes.train_heads(probes.stack([wide, narrow]), label, order, *grid, classes=CLASSES)
    return jax.device_get(heads), (wide, narrow), label, order


def test_heads_trained_at_once_are_those_trained_one_by_one(trained):
    heads, columns, label, order = trained
    alone = jax.jit(probes.train_head, static_argnums=5)
    for g, x in enumerate(columns):
        width = x.shape[1]
        for h, (rate, decay) in enumerate(zip(RATES, DECAYS, strict=True)):
            one = alone(x, label, order, np.float32(rate), np.float32(decay), CLASSES)
            # The same operations on float32; a product over a batch of heads may sum in another order.
            told = {"rtol": 1e-5, "atol": 2e-6}
            np.testing.assert_allclose(heads.kernel[g, h, :width], one.kernel, **told)
            np.testing.assert_allclose(heads.bias[g, h], one.bias, **told)
            assert not heads.kernel[g, h, width:].any()
    assert len(np.unique(heads.kernel[:, :, 0, 0])) == heads.kernel[:, :, 0, 0].size


def test_a_head_is_trained_as_its_docstring_says(trained):
    heads, (x, _), label, order = trained
    for h, (rate, decay) in enumerate(zip(RATES, DECAYS, strict=True)):
        w, a = np.zeros((6, CLASSES)), np.zeros(CLASSES)
        velocity = [np.zeros_like(w), np.zeros_like(a)]
        for step, rows in enumerate(order):
            z = x[rows] @ w + a
            p = np.exp(z - z.max(axis=1, keepdims=True))
            error = (p / p.sum(axis=1, keepdims=True) - np.eye(CLASSES)[label[rows]]) / len(rows)
            grads = (x[rows].T @ error + decay * w, error.sum(axis=0))
            velocity = [0.9 * v + g for v, g in zip(velocity, grads, strict=True)]
            now = rate * (1 + np.cos(np.pi * step / len(order))) / 2
            moves = [now * (0.9 * v + g) for v, g in zip(velocity, grads, strict=True)]
            w, a = w - moves[0], a - moves[1]
        # Float32 against float64 over 28 steps.
        np.testing.assert_allclose(heads.kernel[0, h], w, rtol=0, atol=1e-5)
        np.testing.assert_allclose(heads.bias[0, h], a, rtol=0, atol=1e-5)


def test_every_epoch_sees_each_example_once():
    order = probes.batches(10, batch_size=4, epochs=2, seed=0)
    assert order.shape == (5, 4)
    assert np.bincount(order.ravel()).tolist() == [2] * 10
    assert probes.batches(3, batch_size=3, epochs=1, seed=0).shape == (1, 3)


def parts(seed=0):
    made = [clusters(n, 6, seed + n, spread=2.5) for n in (300, 100, 200)]
    return [probes.Part(x[None], label) for x, label in made]


def probed(train, held, test):
    grid = {"rates": RATES, "decays": DECAYS, "classes": CLASSES, "epochs": 2, "seed": 0}
    return probes.linear(train, held, test, **grid)


def test_the_test_part_chooses_nothing():
    train, held, test = parts()
    wrong = test._replace(label=(test.label + 1) % CLASSES)
    one, other = probed(train, held, test), probed(train, held, wrong)
    assert (one.column, one.head) == (other.column, other.head)
    np.testing.assert_array_equal(one.held_out, other.held_out)
    assert one.held_out.max() == one.held_out[one.column, one.head]
    assert one.correct.mean() > 0.4 > other.correct.mean()
    flat = [p._replace(x=p.x[0]) for p in (train, held, test, wrong)]
    told = {"shots": 5, "l2": (1.0, 100.0), "classes": CLASSES, "seed": 0}
    few = probes.few_shot(*flat[:3], **told)
    assert few.l2 == probes.few_shot(flat[0], flat[1], flat[3], **told).l2
    assert few.top1 > 0.4


def test_a_head_that_diverged_is_never_the_best():
    fits = probes.Fit(np.array([[[[np.nan]], [[0.0]]]], np.float32), np.zeros((1, 2, 1), np.float32))
    hit, loss = probes.measure_heads(fits, np.ones((1, 5, 1), np.float32), np.zeros(5, np.int32))
    assert hit.tolist() == [[0.0, 1.0]]
    assert probes.best(np.asarray(hit), np.asarray(loss)) == (0, 1)
    same = np.array([[0.5, 0.5, 0.4]])
    assert probes.best(same, np.array([[2.0, 1.0, 0.1]])) == (0, 1)
    assert probes.best(same, np.array([[np.nan, 1.0, 0.1]])) == (0, 1)


# Few-shot


@pytest.mark.parametrize(("n", "width"), [(60, 5), (12, 30)])
def test_ridge_regression_is_that_of_sklearn(n, width):
    x, label = clusters(n, width, 3)
    l2 = (1e-3, 1.0, 1e4)
    targets = np.where(np.arange(CLASSES) == label[:, None], 1.0, -1.0)
    for strength, fit in zip(l2, probes.ridge(x, label, classes=CLASSES, l2=l2), strict=True):
        wanted = Ridge(alpha=strength, solver="svd").fit(x.astype(np.float64), targets)
        # Both in float64; the smallest l2 makes the problem the worst conditioned.
        np.testing.assert_allclose(fit.kernel.T, wanted.coef_, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(fit.bias, wanted.intercept_, rtol=1e-7, atol=1e-9)
        assert probes.accuracy(fit, x, label) == (wanted.predict(x).argmax(axis=1) == label).mean()


def test_shots_are_picked_from_every_class():
    label = np.array([0] * 9 + [2] * 3 + [1] * 5, np.int32)
    got = [probes.pick(label, 4, np.random.default_rng(seed)) for seed in range(3)]
    assert all(np.bincount(label[chosen]).tolist() == [4, 4, 3] for chosen in got)
    assert len({tuple(chosen) for chosen in got}) == 3
    assert all(len(np.unique(chosen)) == 11 for chosen in got)


# k-NN


def test_neighbours_vote_as_in_a_plain_loop():
    (train, label), (test, _) = clusters(200, 5, 1, spread=2.0), clusters(300, 5, 2, spread=2.0)
    got = probes.knn(train, label, test, classes=CLASSES, neighbours=(1, 7, 30))
    for (vote, k), predicted in got.items():
        for i, x in enumerate(test):
            s = train @ x / np.linalg.norm(train, axis=1) / np.linalg.norm(x)
            votes = np.zeros(CLASSES)
            for j in np.argsort(-s)[:k]:
                votes[label[j]] += np.exp(s[j] / 0.07) if vote == "weighted" else 1.0
            ordered = np.sort(votes)
            # Nothing is asked of votes so close that rounding decides.
            assert predicted[i] == votes.argmax() or ordered[-1] - ordered[-2] < 1e-4 * ordered[-1]
    assert set(got) == {(vote, k) for vote in ("plain", "weighted") for k in (1, 7, 30)}


def test_weights_outvote_a_crowd_and_length_does_not_count():
    near, far = np.array([1.0, 0.0]), np.array([0.6, 0.8])
    train = np.stack([1e-3 * near, 1e3 * far, far, far]).astype(np.float32)
    label = np.array([1, 0, 0, 0], np.int32)
    got = probes.knn(train, label, near[None].astype(np.float32), classes=2, neighbours=(1, 4))
    # exp(1/0.07) is 304 times exp(0.6/0.07).
    assert {name: int(p[0]) for name, p in got.items()} == {
        ("plain", 1): 1,
        ("weighted", 1): 1,
        ("plain", 4): 0,
        ("weighted", 4): 1,
    }
