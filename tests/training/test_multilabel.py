"""Several labels per image: metrics against scikit-learn, calibration, and what the step learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from vit_jax.analysis import calibration, predictions
from vit_jax.data.loader import Batch
from vit_jax.errors import UserError
from vit_jax.sections import Loss
from vit_jax.training import evaluate, losses, multilabel
from vit_jax.training.step import prepare, training_sums


def constructed():
    """Scores and members of four classes of eight examples, whose average precisions follow by hand."""
    own = np.zeros((8, 4), int)
    own[[0, 1], 0] = 1  # the two best: 1
    own[[6, 7], 1] = 1  # the two worst: (1/7 + 2/8) / 2
    own[[0, 2, 4], 2] = 1  # every second: (1 + 2/3 + 3/5) / 3
    own[:, 3] = 1  # all: 1
    return np.repeat(np.linspace(3, -4, 8)[:, None], 4, axis=1), own, [1, (1 / 7 + 1 / 4) / 2, 34 / 45, 1]


def test_average_precisions_of_four_classes_are_those_worked_out_by_hand():
    score, own, wanted = constructed()
    # Sums of a few fractions: float64's rounding alone.
    np.testing.assert_allclose(multilabel.average_precisions(score, own > 0), wanted, rtol=1e-14)
    assert multilabel.summarise(score, own)["map"] == pytest.approx(np.mean(wanted), rel=1e-14)


def random(seed, *, ties):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(200, 5))
    return (np.round(logits) if ties else logits), (rng.random((200, 5)) < [0.5, 0.1, 0.02, 0.9, 0.3]).astype(
        int
    )


# The same sums of float64 in another order: 1e-9 is the figure to be met, and far above their rounding.
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("data", [0, 1, 2, "constructed"])
def test_metrics_are_those_of_scikit_learn(data, ties):
    logits, own = constructed()[:2] if data == "constructed" else random(data, ties=ties)
    got, taken = multilabel.summarise(logits, own), logits >= 0
    assert got["map"] == pytest.approx(metrics.average_precision_score(own, logits), abs=1e-9)
    for average in ("micro", "macro"):
        wanted = metrics.f1_score(own, taken, average=average, zero_division=np.nan)
        assert got[f"f1_{average}"] == pytest.approx(wanted, abs=1e-9)
    each = [metrics.average_precision_score(own[:, c], logits[:, c]) for c in range(own.shape[1])]
    assert (got["worst_class"], got["worst"]) == (np.argmin(each), pytest.approx(min(each), abs=1e-9))
    best = np.mean([own[i, row.argmax()] for i, row in enumerate(logits)])
    assert (got["top1"], got["examples"]) == (best, len(own))
    p = 1 / (1 + np.exp(-logits))
    bits = own.shape[1] * metrics.log_loss(own.ravel(), np.stack([1 - p.ravel(), p.ravel()], axis=1))
    assert got["loss"] == pytest.approx(bits, rel=1e-9)


def test_nothing_is_said_of_no_examples():
    none = np.zeros((0, 3))
    for told in (
        lambda: multilabel.summarise(none, none),
        lambda: evaluate.summarise(0.0, 0.0, np.zeros(3), np.zeros(3)),
        lambda: predictions.collect([(np.zeros(0, np.int32), none)], keep_logits=False),
    ):
        with pytest.raises(UserError, match="no example of the evaluation split can be read: check its"):
            told()


def test_classes_without_examples_do_not_count():
    logits, own = random(0, ties=False)
    own[:, 2] = 0
    with pytest.warns(match="No positive class found in y_true"):
        of_all = metrics.average_precision_score(own, logits, average=None)
    assert multilabel.summarise(logits, own)["map"] == pytest.approx(np.delete(of_all, 2).mean(), abs=1e-9)
    unused = np.where(np.arange(5) == 2, -9.0, logits)
    by_class = multilabel.f1_scores(unused >= 0, own > 0).by_class
    np.testing.assert_array_equal(np.isnan(by_class), [False, False, True, False, False])
    nobody = multilabel.summarise(logits, np.zeros_like(own))
    assert (nobody["map"], nobody["top1"]) == (0, 0)


def test_thresholds_are_the_best_of_each_class_and_keep_to_the_next_examples():
    rng = np.random.default_rng(0)
    centre = np.array([0.2, 0.5, 0.7, 0.9])  # a class is true from about there on
    p = rng.random((4000, 4))
    own = rng.random((4000, 4)) < 1 / (1 + np.exp(-60 * (p - centre)))
    found = np.array(calibration.fit_thresholds(p[:2000], own[:2000]))
    # Slopes of width 1/60 about the centres: the best F1 of a sample lies within two of them.
    np.testing.assert_allclose(found, centre, atol=2 / 60)
    for c in range(4):
        some, of = p[:100, c], own[:100, c]
        f1 = lambda t, some=some, of=of: metrics.f1_score(of, some >= t)
        (chosen,) = calibration.fit_thresholds(some[:, None], of[:, None])
        assert f1(chosen) == pytest.approx(max(map(f1, some)), abs=1e-9)
    halves = multilabel.f1_scores(p[2000:] >= 0.5, own[2000:]).macro
    assert multilabel.f1_scores(p[2000:] >= found, own[2000:]).macro > halves + 0.1
    own[:, 1], own[:, 2] = False, True
    assert calibration.fit_thresholds(p, own)[1] == calibration.UNFITTED
    assert 0 < calibration.fit_thresholds(p, own)[2] < p[:, 2].min()  # all are of the class


def test_the_temperature_of_sigmoids_is_found():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(20_000, 4)) * 2
    own = rng.random(z.shape) < 1 / (1 + np.exp(-z))
    fitted = calibration.fit(3 * z, own.astype(np.uint8), loss="sigmoid")
    # 80,000 decisions tell a temperature of 3 to about 1 %; 3 % is three of its standard deviations.
    assert fitted.temperature == pytest.approx(3, rel=0.03)
    assert (fitted.scores, fitted.examples, len(fitted.thresholds)) == ((), 20_000, 4)
    # With p = sigmoid(z) known, the best threshold for F1 is half the best F1 (arXiv:1402.1892 theorem 1).
    f1 = lambda t: multilabel.f1_scores(calibration.sigmoid(z) >= t, own).by_class
    best = f1(np.array(fitted.thresholds))
    # The top of F1 is flat: 20,000 examples tell F1 to 0.005, and the threshold less well.
    assert ((f1(best / 2) <= best) & (f1(best / 2) > best - 0.005)).all()
    with pytest.raises(UserError, match="--coverage is for models of one class per image"):
        fitted.sets(calibration.sigmoid(z), 0.9)


# --- the step ---


def batch(own):
    image = np.random.default_rng(0).integers(0, 256, (len(own), 4, 4, 1), dtype=np.uint8)
    return Batch(image, np.asarray(own, np.uint8), np.ones(len(own), np.float32))


def test_labels_are_the_targets_and_mix_as_images_do():
    own = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]])
    plain = prepare(batch(own), 3, key=jax.random.key(0), cfg=Loss(name="sigmoid"))
    np.testing.assert_array_equal(plain.target, own)
    smooth = prepare(batch(own), 3, key=jax.random.key(0), cfg=Loss(name="sigmoid", label_smoothing=0.3))
    np.testing.assert_allclose(smooth.target, own * 0.7 + 0.1, rtol=1e-6)  # float32
    mixed = prepare(batch(own), 3, key=jax.random.key(0), cfg=Loss(name="sigmoid", mixup=1.0))
    pixels = np.asarray(plain.pixels)
    before = np.roll(pixels, 1, axis=0)
    share = float(((mixed.pixels - before) * (pixels - before)).sum() / ((pixels - before) ** 2).sum())
    assert 0.5 <= share < 0.99
    np.testing.assert_allclose(mixed.target, share * own + (1 - share) * np.roll(own, 1, axis=0), atol=1e-5)
    np.testing.assert_array_equal(mixed.own, own)


def test_a_hit_is_a_best_class_among_ones_own():
    own = jnp.array([[1, 1, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], jnp.uint8)
    logits = jnp.array([[2.0, 3, 1], [2, 1, 3], [3, 2, 1], [1, 1, 1], [1, 1, 0]])
    assert losses.in_top_of(logits, own, 1).tolist() == [1, 0, 0, 1, 0]
    assert losses.in_top_of(logits, own, 2).tolist() == [1, 1, 0, 1, 1]
    part = prepare(batch(own), 3, key=jax.random.key(0), cfg=Loss(name="sigmoid"))
    sums = training_sums(logits, part, None, Loss(name="sigmoid"))
    wanted = np.logaddexp(0, logits) - np.asarray(own) * np.asarray(logits)
    assert (float(sums.top1), float(sums.weight)) == (2, 5)
    assert float(sums.loss) == pytest.approx(float(wanted.sum()), rel=1e-6)  # float32
