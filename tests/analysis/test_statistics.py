"""Statistics and calibration on constructed data whose answers are known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from vit_jax.analysis import calibration, predictions, statistics
from vit_jax.data import sources
from vit_jax.errors import UserError
from vit_jax.sections import Data, Preprocess
from vit_jax.training.evaluate import walk


def test_calibration_error_is_the_constructed_gap():
    confidence = np.repeat([0.95, 0.55], 1000)
    correct = np.concatenate([np.arange(1000) < 900, np.arange(1000) < 550])
    assert statistics.expected_calibration_error(confidence, correct) == pytest.approx(0.025)
    assert statistics.expected_calibration_error(np.ones(8), np.ones(8)) == 0


def test_the_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [statistics.bootstrap_interval(rng.random(400) < 0.8, draws=500) for _ in range(400)]
    covered = np.mean([low <= 0.8 <= high for low, high in intervals])
    # 400 trials of 95% have a standard deviation of 1.1 points; the percentile interval is a little narrow.
    assert 0.91 < covered < 0.985


def test_mcnemar_is_the_exact_binomial_test():
    stats = pytest.importorskip("scipy.stats")
    for only_first, only_second, both in ((8, 2, 50), (5, 5, 3), (0, 0, 9), (300, 340, 10)):
        first = np.repeat([True, False, True], [only_first, only_second, both])
        second = np.repeat([False, True, True], [only_first, only_second, both])
        got = statistics.mcnemar(first, second)
        assert got[:2] == (only_first, only_second)
        n = only_first + only_second
        wanted = stats.binomtest(only_first, n).pvalue if n else 1.0
        assert got.p_value == pytest.approx(wanted, rel=1e-9)


def test_confusion_counts_labels_by_predictions():
    got = statistics.confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert got.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def drawn(n, temperature, seed):
    """Logits whose softmax at `temperature` is the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 6)) * 4
    cumulative = calibration.softmax(logits / temperature).cumsum(axis=1)
    return logits, (rng.random((n, 1)) > cumulative).sum(axis=1).clip(0, 5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_recovered(temperature):
    logits, labels = drawn(40_000, temperature, 0)
    # Three standard errors of a maximum likelihood estimate from 40,000 examples.
    assert calibration.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


def test_the_temperature_of_sigmoids_has_the_least_binary_cross_entropy():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(500, 4)) * 3 - 1, rng.integers(0, 4, 500)
    logits[np.arange(500), labels] += 3
    signs = np.where(np.arange(4) == labels[:, None], 1, -1)
    loss = lambda t: -scipy.special.log_expit(signs * logits / t).sum()
    wanted = scipy.optimize.minimize_scalar(loss, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-9})
    # Bounded search finds where a parabola is flat: half the digits of a float64.
    assert calibration.fit_temperature(logits, labels, loss="sigmoid") == pytest.approx(wanted.x, rel=1e-6)


def test_confidences_are_those_of_the_loss():
    logits = np.array([[2.0, 1.0, -30.0], [-800.0, 900.0, 0.0]])
    labels = np.array([0, 1], np.int32)
    wanted = {"softmax": scipy.special.softmax(logits, axis=1), "sigmoid": scipy.special.expit(logits)}
    for loss, of in wanted.items():
        # Probabilities in float64, by other operations than scipy's: a few units in the last place of 1.
        np.testing.assert_allclose(calibration.CONFIDENCE[loss](logits), of, rtol=0, atol=1e-15)
        found = predictions.collect([(labels, logits.astype(np.float32))], keep_logits=False, loss=loss)
        # Stored in float32.
        np.testing.assert_allclose(found.confidence, of[[0, 1], [0, 1]], rtol=1e-6)


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.99])
def test_conformal_sets_hold_the_label_as_often_as_asked(coverage):
    shares = []
    for seed in range(40):
        logits, labels = drawn(2000, 2.0, seed)
        fitted = calibration.fit(logits[:1000], labels[:1000])
        p = calibration.softmax(logits[1000:] / fitted.temperature)
        shares.append(fitted.sets(p, coverage)[np.arange(1000), labels[1000:]].mean())
    # Mean of 40 trials of 1,000: the guarantee is [coverage, coverage + 1/1001], noise about 0.3 points.
    assert coverage - 0.008 < np.mean(shares) < coverage + 0.009


def test_too_few_examples_give_the_set_of_all_classes(tmp_path):
    fitted = calibration.fit(*drawn(5, 1.0, 0))
    assert fitted.sets(np.full((1, 6), 1 / 6), 0.9).all()
    with pytest.raises(UserError, match="is not between 0 and 1"):
        fitted.sets(np.full((1, 6), 1 / 6), 1.0)


def test_a_calibration_is_of_the_parameters_that_it_was_fitted_on(tmp_path, capsys):
    fitted = calibration.fit(*drawn(50, 1.0, 0))
    params = {"head": {"kernel": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}
    path = tmp_path / "calibration.json"
    assert calibration.save(tmp_path, fitted, params) == path
    assert calibration.load(tmp_path, jax.tree.map(jnp.asarray, params)) == fitted
    assert calibration.load(tmp_path / "file.npz", params) is None
    assert not capsys.readouterr().err
    params["head"]["bias"][1] = 1e-6
    stored = json.loads(path.read_text())
    for of in (stored, {k: v for k, v in stored.items() if k != "params"}):  # which older files have not
        path.write_text(json.dumps(of))
        assert calibration.load(tmp_path, params) is None
        assert "was fitted on other weights and is not used: run evaluate --c" in capsys.readouterr().err
    path.write_text("{}")
    with pytest.raises(UserError, match="is not a calibration"):
        calibration.load(tmp_path, params)


def test_predictions_count_each_example_once_and_ties_against_the_model(tmp_path):
    logits = np.array([[2, 1, 0], [1, 1, 0], [0, 0, 0], [9, 9, 9]], np.float32)
    found = predictions.collect([(np.array([0, 1, 2], np.int32), logits[:3])], keep_logits=True)
    metrics = predictions.metrics(found, classes=3)
    assert (metrics["examples"], metrics["top1"]) == (3, pytest.approx(1 / 3))
    predictions.save(tmp_path / "p.npz", found)
    assert predictions.load(str(tmp_path / "p.npz")).rank.tolist() == [0, 1, 2]
    bad = np.array([7, 0, 0, 0], np.int32)
    with pytest.raises(UserError, match="the data has label 7, the model 3 classes"):
        predictions.collect([(bad, logits)], keep_logits=False)


def test_metrics_of_classes_are_those_of_scikit_learn():
    metrics_of = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    label = rng.choice(7, size=300, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05, 0]).astype(np.int32)
    logits = rng.normal(size=(300, 7)).astype(np.float32) + 1.5 * np.eye(7, dtype=np.float32)[label]
    found = predictions.collect([(label, logits)], keep_logits=False)
    got = predictions.metrics(found, classes=7)
    recalls = metrics_of.recall_score(label, found.predicted, labels=range(6), average=None)
    wanted = {
        "top1": metrics_of.accuracy_score(label, found.predicted),
        "top5": metrics_of.top_k_accuracy_score(label, logits, k=5, labels=range(7)),
        "macro": recalls.mean(),  # balanced_accuracy_score warns of the class without examples
        "majority": np.bincount(label).max() / 300,
        "worst": recalls.min(),
        "worst_class": recalls.argmin(),
        "loss": metrics_of.log_loss(label, scipy.special.softmax(logits, axis=1), labels=range(7)),
    }
    assert got.pop("examples") == 300
    # The loss is a mean of float32 numbers.
    assert got == pytest.approx(wanted, rel=1e-6)


def test_a_walk_meets_each_example_once_in_order_on_all_devices():
    image = np.arange(10, dtype=np.uint8).repeat(64).reshape(10, 8, 8, 1)
    source = sources.arrays(image, np.arange(10), list("0123456789"))
    preprocess = Preprocess(channels=1, mean=(0.0,), std=(1.0,))
    seen = {"preprocess": preprocess, "image_size": (8, 8), "batch_size": 3}  # 8 on the 8 devices
    pixel = lambda params, image_bhwc: params["scale"] * image_bhwc[:, 0, 0, 0]
    batches = list(walk(pixel, {"scale": np.float32(255)}, source, Data(), **seen))
    assert [len(label_b) for label_b, _ in batches] == [8, 2]
    for made in zip(*batches, strict=True):
        np.testing.assert_allclose(np.concatenate(made), np.arange(10), atol=1e-4)  # of a division by 255
