"""A run that version 0.1 stored is loaded, gives the logits that it gave, and goes on as it went on."""

import json
import tarfile

import numpy as np
import pytest
from paths import GOLDEN

import vit_jax
from vit_jax.config import parse_stored
from vit_jax.data import sources
from vit_jax.training.step import normalise

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")


@pytest.fixture
def stored(tmp_path):
    """The folder of the run, and what is expected of it."""
    with tarfile.open(GOLDEN / "stored_run.tar.gz") as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path / "run", json.loads((tmp_path / "expected.json").read_text())


def test_a_stored_run_gives_its_logits(stored):
    run, expected = stored
    loaded, digits = vit_jax.load(run / "checkpoints" / "10"), sources.digits(train=False)
    image_bhwc = np.stack([digits.get(i)[0] for i in range(4)])
    x_bhwc = normalise(image_bhwc, loaded.spec.preprocess)
    logits_bc = loaded.model.apply({"params": loaded.params}, x_bhwc)
    # float32 sums of 32 terms in another order
    np.testing.assert_allclose(logits_bc, expected["logits"], rtol=1e-5, atol=1e-7)
    assert loaded.classify([image_bhwc[0]], top=1)[0][0].name in loaded.spec.class_names


def test_a_stored_run_goes_on_to_the_end_that_it_had(stored):
    run, expected = stored
    cfg = parse_stored(json.loads((run / "config.json").read_text()))
    done = vit_jax.train(cfg, run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines if "train/loss" in row] == [5, 10, 15, 20]
    assert done.step == 20
    # In ten steps of rate 1e-3 the loss moves by 0.01. Another order of float32 additions changes gradients,
    # which Adam divides by their size: it may come to a thousandth of that.
    end = next(row for row in lines if row["step"] == 20 and "train/loss" in row)
    assert end["train/loss"] == pytest.approx(expected["train/loss"], abs=1e-5)
    assert done.metrics["loss"] == pytest.approx(expected["eval/loss"], abs=1e-5)
