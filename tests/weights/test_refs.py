"""What a model is called, and training from it."""

import dataclasses

import jax
import numpy as np
import pytest
from paths import GOLDEN

import vit_jax
from vit_jax import config
from vit_jax.data import sources
from vit_jax.errors import UserError
from vit_jax.run import first_state, loop
from vit_jax.run.setup import set_up
from vit_jax.training import mesh as meshes
from vit_jax.weights.formats import orbax
from vit_jax.weights.load import read

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")


def tree(**model):
    c = config.default()
    c.model.update(image_size=32, patch_size=8, width=48, depth=2, heads=3, mlp_width=96)
    c.model.update(model)
    c.data.update(name="digits", threads=0, augment="none", flip=False)
    c.optim.update(name="sgd", lr=1e-6)
    c.train.update(steps=1, batch_size=16)
    return c


@pytest.mark.long
def test_training_starts_from_a_file_at_another_resolution_with_a_fresh_head(tmp_path):
    c = tree(image_size=48, classes=7)
    c.init = str(GOLDEN / "vit_token.npz")
    c.data.name = "digits"
    c.model.classes = 12
    loop.run(config.parse(c), tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert "resized embed/positions: 4x4 to 6x6 by official" in log
    assert "reset head: zeros for 12 classes, in place of 10" in log
    trained = vit_jax.load(tmp_path).params
    stored = vit_jax.load(GOLDEN / "vit_token.npz", image_size=48).params
    # one SGD step at a learning rate of 1e-6 moves nothing by more than that times its gradient
    np.testing.assert_allclose(
        trained["block_1"]["mlp"]["up"]["kernel"], stored["block_1"]["mlp"]["up"]["kernel"], atol=1e-4
    )
    np.testing.assert_allclose(trained["embed"]["positions"], stored["embed"]["positions"], atol=1e-4)
    assert abs(trained["head"]["kernel"]).max() < 1e-4


def test_another_model_is_refused_with_all_its_fields(tmp_path):
    c = tree(width=96, depth=3)
    c.init = str(GOLDEN / "vit_token.npz")
    with pytest.raises(UserError, match=r"model.width=96 \(it has 48\), model.depth=3 \(it has 2\)"):
        loop.run(config.parse(c), tmp_path)


def test_channels_must_match(tmp_path):
    c = tree()
    c.init = str(GOLDEN / "vit_token.npz")
    c.data.channels = 1
    with pytest.raises(UserError, match=r"data.channels=1 \(it has 3\)"):
        loop.run(config.parse(c), tmp_path)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, optax_dtypes, one_device):
    path = tmp_path_factory.mktemp("run")
    loop.run(config.parse(tree()), path)
    return path


def test_a_run_and_a_file_written_from_it_are_the_same_model(run_dir, tmp_path):
    loaded = vit_jax.load(run_dir)
    vit_jax.save(tmp_path / "out.npz", loaded, dialect="official")
    again = vit_jax.load(tmp_path / "out.npz")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, again.params)
    assert again.spec.model == loaded.spec.model
    assert loaded.spec.class_names == tuple("0123456789")


def test_a_run_can_be_loaded_at_another_size_for_other_classes(run_dir):
    loaded = vit_jax.load(run_dir, image_size=(64, 32), classes=3)
    image = np.zeros((2, 64, 32, 3), np.float32)
    assert loaded.model.apply({"params": loaded.params}, image).shape == (2, 3)
    assert loaded.report.resized
    assert loaded.report.reset


def test_training_continues_from_a_run_with_its_head(run_dir):
    c = tree(classes=10, dropout=0.1, dtype="bfloat16")
    c.init = str(run_dir)
    cfg = config.parse(c)
    data = sources.open_splits(cfg.data)
    model = dataclasses.replace(vit_jax.load(run_dir).spec.model, dropout=0.1, dtype="bfloat16")
    weights = first_state.read_init(set_up(cfg, meshes.make("cpu", 1), data))
    assert weights.model == model
    assert not weights.report.reset


def test_loading_prints_the_report(run_dir, capsys):
    report = vit_jax.load(run_dir).report
    assert capsys.readouterr().err.strip() == str(report)


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is neither a run directory with a checkpoint nor one step of it"):
        read(tmp_path)


def test_a_step_that_is_not_there_and_a_size_that_is_none_are_named(run_dir):
    kept = ", ".join(map(str, orbax.steps_in(run_dir / "checkpoints")))
    with pytest.raises(UserError, match=f"99999 is not there: .*checkpoints has the steps {kept}$"):
        read(run_dir / "checkpoints" / "99999")
    with pytest.raises(UserError, match="image_size='384' is neither a number of pixels nor"):
        vit_jax.load(run_dir, image_size="384")
