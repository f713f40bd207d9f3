"""A folder of pictures of many aspects: trained on, evaluated and used without squashing them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from commands import call
from PIL import Image
from tiny_run import final_digests, tiny

import vit_jax
from vit_jax import config
from vit_jax.cli import attention, evaluate, export, predict
from vit_jax.data import loader, sources
from vit_jax.errors import UserError
from vit_jax.patches import Native, Patches, joined
from vit_jax.run import loop
from vit_jax.run.setup import set_up
from vit_jax.sections import seen_size
from vit_jax.training import mesh as meshes

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")
SIZES_WH = [(40, 12), (12, 40), (30, 30), (64, 9), (9, 64), (21, 35)]  # of files: up to seven to one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Dark and bright pictures of six aspects."""
    root = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for name, low in (("dark", 0), ("bright", 128)):
            (root / split / name).mkdir(parents=True)
            for i in range(count // 2):
                w, h = SIZES_WH[i % len(SIZES_WH)]
                pixels = rng.integers(low, low + 128, size=(h, w, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def configured(folder, **values):
    tree = config.to_dict(tiny(steps=9, batch_size=8, log_every=3, eval_every=0))
    tree["data"] |= {"name": "folder", "dir": str(folder), "channels": 3, "resize": "native"}
    tree["data"] |= {"augment": "inception", "min_area": 0.5}
    tree["model"] |= {"image_size": 16, "patch_size": 4}
    for name, value in values.items():
        section, _, field = name.partition("__")
        tree[section][field] = value
    return config.parse(tree)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory, optax_dtypes, one_device):
    """A run of three epochs, and how many programs were compiled from its first step on."""
    workdir = tmp_path_factory.mktemp("run")
    compiled, begun = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **more: compiled.append(event) if "backend_compile" in event else None
    )
    loop.run(configured(folder), workdir, compiled=lambda workdir: begun.append(len(compiled)))
    return workdir, begun[0], len(compiled) - begun[0]


@pytest.mark.long
def test_a_folder_of_mixed_aspects_trains_and_names_its_classes(run, folder):
    workdir, _, _ = run
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    measured = next(line for line in reversed(lines) if "eval/top1" in line)
    assert measured["eval/examples"] == 8
    loaded = vit_jax.load(str(workdir))
    assert loaded.spec.preprocess.resize == "native"
    images = [Image.open(path) for path in sorted((folder / "val").rglob("*.png"))]
    probabilities = loaded.probabilities(images)
    named = [loaded.spec.class_names[i] for i in probabilities.argmax(axis=1)]
    true = [path.parent.name for path in sorted((folder / "val").rglob("*.png"))]
    assert np.mean([a == b for a, b in zip(named, true, strict=True)]) == measured["eval/top1"]
    # Each image alone, as a whole image of its own size, has the same probabilities. Tolerance: float32.
    for image, wanted in zip(images[:2], probabilities, strict=False):
        h, w = Native(4, 16).fit(image.height, image.width)
        assert (h // 4) * (w // 4) <= 16
        pixels = np.asarray(vit_jax.loaded.transforms.for_evaluation(image, loaded.spec.preprocess, (h, w)))
        alone = loaded.model.apply(
            {"params": loaded.params}, (pixels[None] / np.float32(127.5)) - np.float32(1)
        )
        # Float32 confidences, without padding and with it, in programs of other shapes.
        np.testing.assert_allclose(jax.nn.softmax(alone)[0], wanted, rtol=0, atol=1e-5)
    assert loaded.features(images, pool="gap").shape == (8, 16)
    tokens = loaded.features(images[:2], pool="none")
    assert tokens.shape == (2, 1 + 16, 16)


@pytest.mark.long
def test_commands_see_images_as_the_run_did(run, folder, monkeypatch, capsys):
    workdir, path = run[0], folder / "val" / "dark" / "0.png"  # 40 x 12 pixels
    code, out, _ = call(monkeypatch, capsys, evaluate, workdir, "--json")
    assert (code, json.loads(out)["examples"]) == (0, 8)
    code, out, _ = call(monkeypatch, capsys, predict, workdir, path, "--json")
    best = json.loads(out)["predictions"][0]
    own = vit_jax.load(str(workdir)).classify([Image.open(path)])[0][0]
    # Of another batch size: float32.
    assert (code, best["class"]) == (0, own.name)
    assert abs(best["confidence"] - own.confidence) < 1e-5
    code, out, _ = call(monkeypatch, capsys, attention, workdir, path, "--json")
    assert (code, json.loads(out)["grid"]) == (0, [2, 7])
    code, _, err = call(monkeypatch, capsys, export, workdir, workdir / "x.stablehlo")
    assert (code, "sees images at their own aspect" in err[-1]) == (2, True)


@pytest.mark.long
def test_an_epoch_compiles_at_most_five_programs(run):
    _, before, compiled = run
    assert before > 0
    assert compiled <= 5


def test_the_step_and_the_evaluation_are_one_program_each(folder):
    cfg = configured(folder)
    mesh = meshes.make("cpu", 1)
    data = sources.open_splits(cfg.data)
    with jax.set_mesh(mesh):
        setup = set_up(cfg, mesh, data)
        state = setup.init()
        rows = meshes.host_rows(8, mesh)
        batches = loader.TrainBatches(
            data.train, cfg.data, seen_size(setup.spec.model, cfg.data), 8, 0, setup.steps, rows
        )
        aspects = set()
        for step in range(3):
            aspects |= set(map(tuple, batches[step].image.grid))
            state, _ = setup.step(state, meshes.to_devices(batches[step], 8, mesh), None, None)
        setup.evaluate(state.params, data.eval, cfg.data)
    assert len(aspects) > 4
    assert setup.step._cache_size() == setup.evaluate._add._cache_size() == 1


@pytest.mark.long
def test_a_run_that_is_continued_has_the_same_bits(run, folder, tmp_path):
    whole, _, _ = run
    seen = []

    class Stop(vit_jax.Sink):
        def add(self, step, values):
            seen.append(step)
            if step == 6:
                raise KeyboardInterrupt

    cfg = configured(folder, train__checkpoint_every=4)
    with pytest.raises(KeyboardInterrupt):
        loop.run(cfg, tmp_path / "run", sinks=[Stop()])
    loop.run(cfg, tmp_path / "run")
    assert final_digests(tmp_path / "run") == final_digests(whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_each_image_whole(folder, workers):
    data = dataclasses.replace(configured(folder).data, augment="none", flip=False, workers=workers)
    source = sources.open_split(data, train=False)
    stream = loader.EvalBatches(source, data, Native(4, 20), 3, range(3))
    made = list(loader.iterate(stream, data))
    assert [batch.weight.tolist() for batch in made] == [[1] * 3, [1] * 3, [1, 1, 0]]
    for i in range(8):
        patches = made[i // 3].image
        assert isinstance(patches, Patches)
        assert patches.pixels.shape == (3, 20, 4, 4, 3)
        image = joined(patches, i % 3)
        original = np.asarray(Image.open(source.path(i)))
        assert abs(np.log(image.shape[0] / image.shape[1] / (original.shape[0] / original.shape[1]))) < 0.6
        assert abs(image.mean() - original.mean()) < 4  # grey levels: noise, resized
    assert not made[-1].image.grid[2:].any()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss__mixup": 0.2}, "data.resize=native does not go with loss.mixup, which mixes images of one"),
        ({"train__health": True}, "data.resize=native does not go with train.health"),
        ({"train__patch_sizes": (4, 8)}, "data.resize=native does not go with train.patch_sizes"),
        ({"model__stem_width": 32, "model__patch_size": 1}, "does not go with model.stem_width=32, whose"),
        ({"data__augment": "window"}, "data.augment=window has nothing to choose with data.resize=native"),
        ({"data__resize": "crop", "data__max_tokens": 9}, "data.max_tokens=9 is for data.resize=native"),
    ],
)
def test_what_does_not_go_together_is_said_in_a_line(folder, values, said):
    with pytest.raises(UserError, match=said):
        configured(folder, **values)
