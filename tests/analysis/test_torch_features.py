"""Features are those of timm and transformers; from Python, of images as they are."""

import jax
import numpy as np
import pytest
import torch_reference
from PIL import Image
from torch_reference import CASES, FEATURED, FEATURES, case
from weight_files import arrays

import vit_jax
from vit_jax.analysis import features
from vit_jax.data.transforms import for_evaluation
from vit_jax.errors import UserError
from vit_jax.training.step import normalise
from vit_jax.weights.save import write

# Float32 on both sides, features of order one.
ATOL = 1e-5
# What is stored of a case, by the arguments of `features`.
KINDS = {"none": (-1, "none"), "block_0": (0, "none"), "model": (-1, "model")}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """`load(name)`: the case, written in its dialect and loaded again."""

    def load(name):
        model, params, _ = case(name)
        dialect = CASES[name][0]
        path = tmp_path_factory.mktemp("w") / ("hf" if dialect == "huggingface" else "w.safetensors")
        write(path, params, model, dialect=dialect)
        return vit_jax.load(path)

    return load


def check(loaded, name, theirs):
    """Compare with {kind: array}, which has what the library gives of this model."""
    cfg = loaded.spec.model
    columns = {kind: features.pick(cfg, layer=KINDS[kind][0], pool=KINDS[kind][1]) for kind in theirs}
    run = jax.jit(lambda p, x: features.extract(cfg, p, x, tuple(columns.values())))
    ours = run(loaded.params, case(name)[2][:1])
    assert "none" in theirs
    for kind, column in columns.items():
        np.testing.assert_allclose(ours[column], theirs[kind], rtol=0, atol=ATOL, err_msg=kind)


@pytest.mark.parametrize("name", FEATURED)
def test_features_are_the_stored_ones_of_the_real_library(load, name):
    stored = {kind: array for kind, array in arrays(FEATURES).items() if kind.startswith(f"{name}/")}
    check(load(name), name, {kind.partition("/")[2]: array for kind, array in stored.items()})


@pytest.mark.parity
@pytest.mark.parametrize("name", FEATURED)
def test_features_are_those_of_the_real_library(load, name, tmp_path):
    for library in ("torch", "transformers", "timm", "safetensors"):
        if library == "timm":
            torch_reference.stub_torchvision()
        pytest.importorskip(library)
    check(load(name), name, torch_reference.features(name, torch_reference.theirs(name, tmp_path)))


@pytest.mark.parametrize(
    ("name", "tokens", "own"),
    [
        ("timm_registers", 1 + 4 + 16, "token"),
        ("hf_deit", 2 + 16, "token"),
        ("hf_dinov2", 1 + 16, "token"),
        ("hf_siglip_classifier", 16, "gap"),
    ],
)
def test_images_are_preprocessed_and_any_number_of_them_is_taken(load, name, tokens, own):
    loaded = load(name)
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(9)]
    seen = loaded.spec.preprocess
    pixels = np.stack([for_evaluation(image, seen, (32, 32)) for image in images])
    for layer in (-1, 0):
        every = loaded.features(images, layer=layer, pool="none")
        assert (every.shape, every.dtype) == ((9, tokens, 128), np.float32)
        column = features.pick(loaded.spec.model, layer=layer, pool="none")
        run = jax.jit(lambda p, x, c=column: features.extract(loaded.spec.model, p, x, (c,))[c])
        # The same float32 operations in batches of other sizes; means are taken by numpy.
        np.testing.assert_allclose(every, run(loaded.params, normalise(pixels, seen)), rtol=0, atol=ATOL)
        mean = every[:, -16:].mean(axis=1)
        np.testing.assert_allclose(loaded.features(images, layer=layer, pool="gap"), mean, rtol=0, atol=ATOL)
        pooled = loaded.features(images, layer=layer)
        wanted = mean if own == "gap" else every[:, 0]
        np.testing.assert_allclose(pooled, wanted, rtol=0, atol=ATOL)
    assert loaded.features([], pool="none").shape == (0, tokens, 128)
    assert loaded.features([]).shape == (0, 128)
    assert loaded.features(images, layer=-2).tolist() == loaded.features(images, layer=0).tolist()


def test_what_a_model_lacks_is_one_line(load):
    loaded = load("hf_siglip")
    for told, message in (
        ({"layer": 2}, "layer=2 is not between -2 and 1, the blocks of the model"),
        ({"layer": -3}, "layer=-3 is not between -2 and 1"),
        ({"pool": "max"}, "pool=max is not one of model, token, gap, none"),
        ({"pool": "token"}, "pool=token: the model has no class token: use gap or model"),
    ):
        with pytest.raises(UserError, match=message) as error:
            loaded.features([], **told)
        assert error.value.command == f"--{error.value}"
    with pytest.raises(UserError, match=r"images\[0\] is str"):
        loaded.features(["cat.jpg"])


def test_a_model_without_a_head_says_so_when_logits_are_asked_for(load):
    loaded = load("hf_dinov2")
    assert loaded.spec.model.classes == 0
    image = Image.new("RGB", (32, 32))
    assert loaded.features([image]).shape == (1, 128)
    for ask in (loaded.classify, loaded.probabilities):
        with pytest.raises(UserError, match="hf has no head, so it names no class: load it with classes="):
            ask([image])
    with pytest.raises(UserError, match="the model has no head, so it gives no logits"):
        loaded.model.apply({"params": loaded.params}, np.zeros((1, 32, 32, 3), np.float32))


def test_a_model_without_a_head_is_loaded_with_one_for_classes(load, tmp_path):
    model, params, _ = case("hf_dinov2")
    write(tmp_path / "hf", params, model, dialect="huggingface")
    (predicted,) = vit_jax.load(tmp_path / "hf", classes=4).classify([Image.new("RGB", (32, 32))], top=1)
    assert predicted[0].confidence == 0.25  # of a head of zeros
