"""A dialect from outside: a table of names is all it takes to read, write and train from its files."""

import numpy as np
import pytest
from paths import GOLDEN
from weight_files import arrays, assert_same

import vit_jax
from vit_jax.errors import UserError
from vit_jax.sections import Preprocess
from vit_jax.weights import dialects
from vit_jax.weights.dialect import Dialect, Row, dense, fused, merge_class_slot, norm, out
from vit_jax.weights.load import read
from vit_jax.weights.save import flatten, write

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")

OWN = Dialect(
    name="own",
    variant="own",
    rows=(
        Row("embed/class_token", "token"),
        Row("embed/positions", "where"),
        Row("embed/patch/{leaf}", "patches.{leaf}"),
        *norm("block_{i}/norm1", "layer{i}.before"),
        *fused("block_{i}/attention", "layer{i}.qkv"),
        *out("block_{i}/attention/out", "layer{i}.mix"),
        *norm("block_{i}/norm2", "layer{i}.after"),
        *dense("block_{i}/mlp/up", "layer{i}.wide"),
        *dense("block_{i}/mlp/down", "layer{i}.narrow"),
        *norm("norm", "last"),
        *dense("head", "answer"),
    ),
    holds=lambda model: model.family == "vit" and model.class_token,
    preprocess=lambda model: Preprocess(resize="squash", mean=(0.1,), std=(0.2,)),
    pack=merge_class_slot,
    prefix="net.",
    numerics={"norm_eps": 1e-5},
    posemb_method="bilinear",
)


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(dialects, "DIALECTS", [*dialects.DIALECTS])
    dialects.register(OWN)


@pytest.mark.usefixtures("own")
def test_files_of_a_new_dialect_are_written_read_and_trained_from(tmp_path):
    stored = read(GOLDEN / "bigvision_tok.npz")
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=r"own files cannot tell model.norm_eps=1e-06 \(read as 1e-05\)"):
        write(path, stored.params, stored.model, dialect="own")
    write(path, stored.params, stored.model, dialect="own", numerics="theirs")
    loaded = vit_jax.load(path)
    assert_same(flatten(loaded.params), flatten(stored.params))
    assert loaded.spec.model.norm_eps == 1e-5
    assert loaded.spec.preprocess.mean == (0.1,)
    assert loaded.report.dialect.startswith("own")
    tree = vit_jax.config.default()
    tree.init = str(path)
    tree.model.update(image_size=48, patch_size=8, width=48, depth=2, heads=3, mlp_width=96)
    tree.model.update(norm_eps=1e-5, posemb_class_slot=False)
    tree.data.update(name="digits", threads=0, augment="none", flip=False)
    tree.optim.update(name="sgd", lr=1e-3)
    tree.train.update(steps=2, batch_size=16)
    vit_jax.train(vit_jax.config.parse(tree), tmp_path / "run")
    assert f"own (tanh GELU, epsilon 1e-05) layout, from {path}" in (tmp_path / "run" / "log.txt").read_text()
    vit_jax.save(tmp_path / "back.npz", vit_jax.load(tmp_path / "run"), dialect="own")
    assert np.isfinite(arrays(tmp_path / "back.npz")["net.layer1.qkv.weight"]).all()
    assert arrays(tmp_path / "back.npz")["net.layer1.qkv.weight"].shape == (144, 48)


def test_a_dialect_that_nobody_registered_is_unknown(tmp_path):
    stored = read(GOLDEN / "bigvision_tok.npz")
    with pytest.raises(UserError, match="dialect='own' cannot be written: use big_vision"):
        write(tmp_path / "w.npz", stored.params, stored.model, dialect="own")
