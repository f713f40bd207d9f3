"""Probes of frozen features: a plain reference for each method, a cache that is never stale, the command."""

import csv
import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import call, digits_run
from PIL import Image
from sklearn.linear_model import Ridge
from weight_files import nest, random_params

from vit_jax import config
from vit_jax.analysis import features, probes
from vit_jax.analysis.features import Column
from vit_jax.cli import probe
from vit_jax.data import sources
from vit_jax.errors import UserError
from vit_jax.models.build import build
from vit_jax.sections import Data, Model, Preprocess
from vit_jax.weights.save import write

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


# Features

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
    "scanned": Model(**SIZES, scan=True, remat="full"),
}


@pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS)
def test_features_are_what_the_head_sees_and_what_shorter_models_pool(cfg):
    params = jax.tree.map(lambda x: x * np.float32(0.3), nest(random_params(cfg)))
    images = np.random.default_rng(1).normal(size=(2, 16, 24, 3)).astype(np.float32)
    columns = features.choose(cfg, layers=cfg.depth, poolings=features.meaningful(cfg))
    seen = features.seen_by_head(cfg)
    assert seen in columns
    short = dataclasses.replace(cfg, depth=1, scan=False, remat="none", pre_logits=0, pooling="gap")
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
    assert names(token, layers=2, poolings=("token", "head")) == ["block_0/token", "block_1/token"]
    assert names(mapped, layers=1, poolings=("gap", "head")) == ["block_1/gap", "block_1/head"]
    for cfg, told, message in (
        (token, {"layers": 3, "poolings": ("gap",)}, "--layers=3 is not between 1 and the 2 blocks"),
        (token, {"layers": 1, "poolings": ("max",)}, "--pooling=max is not one of token, gap, head"),
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
    keys.add(made.key(params, dataclasses.replace(source, size=358)))
    assert len(keys) == 9
    same = dataclasses.replace(made.data, augment="none", workers=3, train_split="train[:9]")
    assert dataclasses.replace(made, data=same).key(params, source) in keys


def test_a_file_that_changes_is_another_data_set(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "x.png")
    data = Data(name="folder", dir=str(tmp_path))
    lists = [sources.files_of(data)]
    Image.new("L", (8, 8), 1).save(tmp_path / "a" / "x.png")
    os.utime(tmp_path / "a" / "x.png", ns=(0, 1))
    lists.append(sources.files_of(data))
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert sources.files_of(data) == lists[1] != lists[0]
    tfds = Data(name="a/some_config:1.0.0", dir=str(tmp_path))
    assert [path for path, _, _ in sources.files_of(tfds)] == [str(tmp_path / "a" / "x.png")]


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


# The command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, optax_dtypes, one_device):
    """A finished run of a tiny model on digits."""
    return digits_run(tmp_path_factory.mktemp("run"), depth=2)


def test_the_command_prints_one_table(monkeypatch, capsys, workdir, tmp_path):
    table = tmp_path / "probe.csv"
    few = ("--cache", tmp_path / "cache", "--epochs", 3, "--lr", "0.1,0.01", "--weight_decay", "0,1e-4")
    code, out, err = call(monkeypatch, capsys, probe, workdir, *few, "--json", "--out", table)
    assert code == 0
    assert sum("examples, made in" in line for line in err) == 2
    facts = json.loads(out)
    assert facts["examples"] == {"train": 1294, "held_out": 144, "eval": 359}
    assert facts["linear"]["heads"] == 16
    assert [c["features"] for c in facts["linear"]["columns"]] == [
        *("block_0/token", "block_1/token", "block_0/gap", "block_1/gap")
    ]
    # Even an untrained ViT tells digits apart; this one has seen them.
    assert facts["linear"]["top1"] > 0.5
    assert facts["few_shot"][3]["top1"] > facts["few_shot"][0]["top1"] > 0.1
    assert all(row["top1"] > 0.5 for row in facts["knn"])
    rows = list(csv.reader(table.read_text().splitlines()))
    assert len(rows) == 1 + 6 + 4 + 4
    assert sum(bool(row[4]) for row in rows if row[0] == "linear") == 1

    markdown = tmp_path / "probe.md"
    code, out, err = call(monkeypatch, capsys, probe, workdir, *few, "--out", markdown)
    assert code == 0
    assert sum("examples, read from" in line for line in err) == 2
    lines = out.splitlines()
    assert all(line.startswith(row[0]) for line, row in zip(lines, rows, strict=False))
    assert f"{facts['linear']['top1']:.2%}" in out
    assert max(map(len, lines)) < 120
    assert markdown.read_text().count("\n") == len(rows) + 1


def test_a_file_without_a_head_is_probed_on_other_data(monkeypatch, capsys, tmp_path):
    rng = np.random.default_rng(0)
    for split, n in (("train", 30), ("val", 6)):
        for name in ("dark", "light"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(n // 2):
                pixels = rng.integers(0, 100, (20, 20, 3)) + (155 if name == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    cfg = dataclasses.replace(MODELS["map"], image_size=16, classes=0)
    params = nest(
        {k: v for k, v in random_params(dataclasses.replace(cfg, classes=1)).items() if "head" not in k}
    )
    write(tmp_path / "w.npz", params, cfg, dialect="big_vision")
    data = ("--data.name=folder", f"--data.dir={tmp_path / 'photos'}", "--cache", tmp_path / "cache")
    few = ("--neighbours", 3, "--shots", 2, "--lr", 0.1, "--weight_decay", 0, "--layers", 1, "--json")
    code, out, err = call(monkeypatch, capsys, probe, tmp_path / "w.npz", *data, *few)
    assert code == 0, err
    facts = json.loads(out)
    assert facts["features"] == "block_1/head"
    assert facts["linear"]["top1"] == facts["knn"][0]["top1"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", 0), "--epochs=0 must be at least 1"),
        (("--batch_size", 0), "--batch_size=0 must be at least 1"),
        (("--seed", -1), "--seed=-1 must be at least 0"),
        (("--shots", "1,x"), "--shots=1,x is not a list of numbers: write --shots 1,2,3"),
        (("--neighbours", "0"), "--neighbours=0: every number must be at least 1"),
        (("--lr", "nan"), "--lr=nan: every number must be at least 0, and finite"),
        (("--layers", 3), "--layers=3 is not between 1 and the 2 blocks of the model"),
        (("--pooling", "max"), "--pooling=max is not one of token, gap, head"),
        (("--neighbours", 2000), "the train split has 1438 examples: want at least 2000"),
        (("--out", "table.txt"), "--out=table.txt is neither a .md nor a .csv file"),
        (("--data.nam=x",), "did you mean data.name?"),
        (("--data.name=no_such_set",), "is not prepared in"),
        (("--data.channels=3",), "data.channels=3 is not the 1 that the model takes"),
        (("--data.name=folder", "--data.dir=no_such_folder"), "data.dir=no_such_folder is not a folder"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, workdir, tmp_path, arguments, message):
    code, out, err = call(monkeypatch, capsys, probe, workdir, "--cache", tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert message in err[-1]
    assert [line for line in err if not line.startswith(("loaded ", "  "))] == err[-1:]


def test_places_that_are_none_are_one_line(monkeypatch, capsys, workdir, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    code, _, err = call(monkeypatch, capsys, probe, tmp_path / "nothing")
    assert (code, len(err)) == (2, 1)
    assert "is no run directory, file or published checkpoint" in err[0]
    code, _, err = call(monkeypatch, capsys, probe, workdir, "--cache", file / "below")
    assert code == 2
    assert "cannot write --cache" in err[-1]
    few = ("--epochs", 1, "--lr", 0.1, "--weight_decay", 0, "--cache", tmp_path)
    code, _, err = call(monkeypatch, capsys, probe, workdir, *few, "--out", tmp_path / "no" / "x.md")
    assert code == 2
    assert "cannot write --out" in err[-1]
