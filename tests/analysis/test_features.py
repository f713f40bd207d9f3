"""Frozen features: what the head sees, what shorter models pool, a cache that is never stale."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from PIL import Image
from weight_files import nest, random_params

from vit_jax import config
from vit_jax.analysis import features
from vit_jax.analysis.features import Column
from vit_jax.data import sources
from vit_jax.errors import UserError
from vit_jax.models.build import build
from vit_jax.sections import Data, Model, Preprocess

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")

SIZES = {"image_size": (16, 24), "patch_size": 8, "width": 12, "depth": 2, "heads": 3, "mlp_width": 8}
SIZES |= {"classes": 5}
MODELS = {
    "token": Model(**SIZES),
    "gap": Model(**SIZES, class_token=False, pooling="gap"),
    "map": Model(**SIZES, class_token=False, pooling="map"),
    "pre_logits": Model(**SIZES, pre_logits=7),
    "registers": Model(**SIZES, registers=2, pooling="gap"),
    "hybrid": Model(**SIZES | {"patch_size": 2}, stem_width=32),
    "mixer": Model(
        **SIZES | {"heads": 1}, family="mixer", token_width=4, class_token=False, posemb="none", pooling="gap"
    ),
}


@pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS)
def test_features_are_what_the_head_sees_and_what_shorter_models_pool(cfg):
    params = jax.tree.map(lambda x: x * np.float32(0.3), nest(random_params(cfg)))
    images = np.random.default_rng(1).normal(size=(2, 16, 24, 3)).astype(np.float32)
    columns = features.choose(cfg, layers=cfg.depth, poolings=features.meaningful(cfg))
    seen = features.seen_by_head(cfg)
    assert seen in columns
    short = dataclasses.replace(cfg, depth=1, pre_logits=0, pooling="gap")
    short = dataclasses.replace(short, classes=cfg.width)
    identity = {
        "head": {"kernel": np.eye(cfg.width, dtype=np.float32), "bias": np.zeros(cfg.width, np.float32)}
    }

    @jax.jit
    def run(params):
        found = features.extract(cfg, params, images, columns)
        cut = {name: x for name, x in params.items() if name != "block_1"} | identity
        return (
            found,
            build(cfg).apply({"params": params}, images),
            build(short).apply({"params": cut}, images),
        )

    found, logits, pooled = run(params)
    mine = found[seen] @ params["head"]["kernel"] + params["head"]["bias"][None]
    # The same float32 operations, compiled with others around them.
    np.testing.assert_allclose(mine, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[Column(0, "gap")], pooled, rtol=1e-5, atol=1e-5)


def test_columns_are_chosen_once_each():
    token, mapped = MODELS["token"], MODELS["map"]
    names = lambda cfg, **told: [c.name for c in features.choose(cfg, **told)]
    assert names(token, layers=2, poolings=("token", "model")) == ["block_0/token", "block_1/token"]
    assert names(mapped, layers=1, poolings=("gap", "model")) == ["block_1/gap", "block_1/model"]
    for cfg, told, message in (
        (token, {"layers": 3, "poolings": ("gap",)}, "--layers=3 is not between 1 and the 2 blocks"),
        (token, {"layers": 1, "poolings": ("max",)}, "pooling=max is not one of token, gap, model"),
        (mapped, {"layers": 1, "poolings": ("token",)}, "the model has no class token"),
    ):
        with pytest.raises(UserError, match=message):
            features.choose(cfg, **told)


# The cache


@pytest.fixture
def job(monkeypatch):
    """A job on digits whose runs are counted in `job.runs`, its parameters, and its source."""
    cfg = Model(image_size=8, patch_size=4, width=8, depth=1, heads=2, mlp_width=8, classes=10)
    data = Data(name="digits", channels=1, threads=0)
    params = nest(random_params(cfg))
    params["embed"]["patch"]["kernel"] = params["embed"]["patch"]["kernel"][:, :, :1]  # grey
    runs = []
    run = features.Job.run
    monkeypatch.setattr(features.Job, "run", lambda self, *args: runs.append(self) or run(self, *args))
    columns = (Column(0, "token"), Column(0, "gap"))
    made = features.Job(cfg, config.preprocess_of(data), data, columns, False, 128)
    return made, params, sources.open_split(data, train=False), runs


def test_the_cache_is_used_again(job, tmp_path):
    made, params, source, runs = job
    cache = features.Cache(tmp_path / "deep" / "folder")
    first, path, found = cache.split(made, params, source)
    assert not found
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    second, again, found = cache.split(dataclasses.replace(made, batch_size=7), params, source)
    assert found
    assert again == path
    assert len(runs) == 1
    assert first.label.shape == (359,)
    np.testing.assert_array_equal(first.label, second.label)
    for column in made.columns:
        np.testing.assert_array_equal(first.columns[column], second.columns[column])


def test_the_cache_is_of_these_weights_this_preprocessing_and_these_examples(job, tmp_path):
    made, params, source, _ = job
    keys = {made.key(params, source)}
    touched = jax.tree.map(np.array, params)
    touched["head"]["bias"][3] += 1e-3
    keys.add(made.key(touched, source))
    for change in (
        {"cfg": dataclasses.replace(made.cfg, gelu="exact")},
        {"preprocess": Preprocess(channels=1, mean=(0.4,))},
        {"data": dataclasses.replace(made.data, eval_split="test")},
        {"data": dataclasses.replace(made.data, on_error="skip")},
        {"train": True},
        {"columns": made.columns[:1]},
    ):
        keys.add(dataclasses.replace(made, **change).key(params, source))
    keys.add(made.key(params, dataclasses.replace(source, labels_n=source.labels_n[:358])))
    assert len(keys) == 9
    same = dataclasses.replace(made.data, augment="none", workers=3, train_split="train[:9]")
    assert dataclasses.replace(made, data=same).key(params, source) in keys


def test_a_file_that_changes_is_another_data_set(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "x.png")
    data = Data(name="folder", dir=str(tmp_path))
    source = sources.open_split(data, train=True)
    lists = [source.files()]
    Image.new("L", (8, 8), 1).save(tmp_path / "a" / "x.png")
    os.utime(tmp_path / "a" / "x.png", ns=(0, 1))
    lists.append(source.files())
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert source.files() == lists[1] != lists[0]


def test_what_is_held_in_memory_is_known_by_its_digest():
    images, labels = np.arange(48, dtype=np.uint8).reshape(4, 3, 4), [0, 1, 1, 0]
    (first,) = sources.arrays(images, labels, "ab").files()
    assert first.bytes == 48
    others = [(images + 1, labels), (images[::-1], labels), (images, [*labels[:3], 1])]
    assert all(sources.arrays(x, y, "ab").files() != [first] for x, y in others)
    assert sources.arrays(images.copy(), labels, "ab").files() == [first]


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "other"])
def test_a_broken_cache_file_is_computed_again(job, tmp_path, harm):
    made, params, source, runs = job
    cache = features.Cache(tmp_path)
    wanted, path, _ = cache.split(made, params, source)
    whole = path.read_bytes()
    if harm == "other":
        features.save(path, "another key", wanted)
    else:
        at = len(whole) // 2
        flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        path.write_bytes({"cut": whole[:at], "flip": flipped, "empty": b""}[harm])
    got, _, found = cache.split(made, params, source)
    assert not found
    assert len(runs) == 2
    np.testing.assert_array_equal(got.columns[Column(0, "gap")], wanted.columns[Column(0, "gap")])
    assert cache.split(made, params, source)[2]


def test_a_write_that_fails_leaves_nothing(job, monkeypatch, tmp_path):
    made, params, source, _ = job
    cache = features.Cache(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"cannot write --cache .*: No space left on device"):
        cache.split(made, params, source)
    assert list(tmp_path.iterdir()) == []


def test_features_that_are_not_finite_are_not_kept(job, tmp_path):
    made, params, source, _ = job
    params["norm"]["scale"][0] = np.nan
    with pytest.raises(UserError, match="features that are not finite: block_0/token, block_0/gap"):
        features.Cache(tmp_path).split(made, params, source)
    assert list(tmp_path.iterdir()) == []
