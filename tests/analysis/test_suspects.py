"""Labels that look wrong: planted ones are found, and folds are fair."""

import numpy as np
import pytest

from vit_jax.analysis import suspects

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")


def test_planted_labels_are_ranked_first():
    rng = np.random.default_rng(0)
    true = rng.permutation(np.repeat(np.arange(3, dtype=np.int32), 60))
    x = rng.normal(size=(180, 8)).astype(np.float32) + 8 * np.eye(3, 8, dtype=np.float32)[true]
    planted = rng.choice(180, 6, replace=False)
    label = true.copy()
    label[planted] = (true[planted] + 1) % 3
    options = {"rate": 0.1, "decay": 1e-3, "classes": 3, "epochs": 10, "seed": 0}
    found = suspects.held_out(x, label, **options)
    ranked = found.ranked(label)
    assert set(ranked[:6]) == set(planted)
    assert (found.predicted[planted] == true[planted]).all()
    assert (np.diff(found.loss[ranked]) <= 0).all()
    # The probability of a class that is not the likeliest is at most what the likeliest one leaves.
    assert (np.exp(-found.loss[ranked]) <= 1 - found.confidence[ranked] + 1e-6).all()  # float32
    right = found.predicted == label
    np.testing.assert_allclose(np.exp(-found.loss[right]), found.confidence[right], rtol=1e-5)  # float32
    again = suspects.held_out(x, label, **options)
    np.testing.assert_array_equal(found.loss, again.loss)


def test_an_example_has_no_part_in_the_head_that_judges_it(monkeypatch):
    rng = np.random.default_rng(1)
    label = np.repeat(np.arange(2, dtype=np.int32), 20)
    x = rng.normal(size=(40, 4)).astype(np.float32)
    x[0] = 50.0  # far from all: a head that had seen it would be sure of it
    other = label.copy()
    other[0] = 1
    fold = np.arange(40) % suspects.FOLDS
    monkeypatch.setattr(suspects, "folds", lambda label_n, seed: fold)
    options = {"rate": 0.1, "decay": 0.0, "classes": 2, "epochs": 20, "seed": 0}
    before, after = (suspects.held_out(x, labels, **options) for labels in (label, other))
    same = fold == fold[0]
    np.testing.assert_array_equal(before.loss[same][1:], after.loss[same][1:])
    assert (before.loss[~same] != after.loss[~same]).all()  # the heads that saw it
    both = np.exp(-np.float64([before.loss[0], after.loss[0]]))
    assert both.sum() == pytest.approx(1, abs=1e-6)  # float32: the label has no part in the probabilities


def test_folds_share_the_classes_evenly():
    label = np.repeat(np.arange(4), [1, 5, 23, 60])
    fold = suspects.folds(label, seed=3)
    for c in range(4):
        counts = np.bincount(fold[label == c], minlength=suspects.FOLDS)
        assert counts.max() - counts.min() <= 1
    sizes = np.bincount(fold, minlength=suspects.FOLDS)
    assert sizes.max() - sizes.min() <= 1
    assert (fold != suspects.folds(label, seed=4)).any()
