"""configs/from_init.py: the model follows the weights, whoever wrote them, and every field remains a flag."""

import dataclasses
import json

import numpy as np
import pytest
import torch_reference
from paths import GOLDEN
from PIL import Image
from weight_files import arrays

import vit_jax
from vit_jax.cli import train
from vit_jax.config import preprocess_of
from vit_jax.errors import UserError
from vit_jax.weights import load
from vit_jax.weights.formats import npz, safetensors
from vit_jax.weights.save import flatten, write

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")

# Of an AugReg file's layout, with and without a hidden layer, of big_vision, DeiT, DINOv2, SigLIP and CLIP.
OFFICIAL = ("vit_token", "vit_prelogits", "hybrid_resnet", "mixer", "bigvision_map", "bigvision_gap_sincos")
TORCH = ("timm_deit", "timm_registers", "hf_deit", "hf_dinov2", "hf_dinov2_swiglu", "hf_siglip")
TORCH += ("hf_clip_projection",)
FRESH = {"classes": 0, "pre_logits": 0, "pre_logits_form": "tanh", "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with 20 dark and 20 light images."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 155)):
        (folder / name).mkdir()
        for i in range(20):
            pixels = low + rng.integers(0, 100, (24, 30, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def ref(tmp_path):
    """`ref(name)`: a file or folder of that case."""

    def ref(name):
        if name in OFFICIAL:
            return GOLDEN / f"{name}.npz"
        model, params, _ = torch_reference.case(name)
        dialect = torch_reference.CASES[name][0]
        path = tmp_path / ("hf" if dialect == "huggingface" else "w.safetensors")
        write(path, params, model, dialect=dialect)
        return path

    return ref


def configured(ref, photos, *fields):
    words = ["--config", f"configs/from_init.py:{ref}", f"--config.data.dir={photos}", "--workdir", "unused"]
    _, _, (cfg,) = train.parse([*words, *(f"--config.{field}" for field in fields)])
    return cfg


@pytest.mark.parametrize("name", [*OFFICIAL, *TORCH])
def test_model_and_preprocessing_are_those_of_the_file_and_no_array_is_read(name, ref, photos, monkeypatch):
    path = ref(name)
    weights = load.read(path)
    with monkeypatch.context() as patch:
        for kind in (npz, safetensors):
            patch.setattr(kind.Archive, "read", lambda *_: pytest.fail("read an array"))
        cfg = configured(path, photos)
    assert cfg.init == str(path)
    assert cfg.model == dataclasses.replace(weights.model, **FRESH)
    assert preprocess_of(cfg.data) == weights.preprocess


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("vit_prelogits", "timm_deit", "hf_clip_projection")
]


@pytest.mark.long
@pytest.mark.parametrize("name", ["bigvision_map", "hf_dinov2", *SLOW])
def test_three_words_fine_tune_any_file_on_a_folder(name, ref, photos, tmp_path):
    path = ref(name)
    before = load.read(path)
    run = vit_jax.train(configured(path, photos, "data.threads=0"), tmp_path / "run")
    trained = run.load()
    assert run.metrics["examples"] == 4
    assert run.metrics["top1"] == 1.0  # brightness is all there is to learn
    assert trained.spec.class_names == ("dark", "light")
    assert trained.spec.preprocess == before.preprocess
    assert trained.spec.model == dataclasses.replace(before.model, **FRESH | {"classes": 2})
    was, now = flatten(before.params), flatten(trained.params)
    body = [k for k in was if not k.startswith(("head", "pool/pre_logits"))]
    heads = {k for k in now if k.startswith("head")}
    assert now.keys() == {*body, *heads}
    # 12 steps of AdamW at the layers' rates, of at most 2.5e-4, from where the file was.
    assert all(np.abs(now[k] - was[k]).max() < 12 * 2.5e-4 for k in body)
    assert len(heads) == (4 if name == "timm_deit" else 2)


@pytest.mark.long
def test_every_override_is_one_flag_and_positions_are_resized_as_the_family_does(ref, photos, tmp_path):
    fields = (
        "model.image_size=48",
        "model.dtype=float32",
        "optim.lr=1e-3",
        "train.steps=1",
        "train.epochs=0",
    )
    cfg = configured(ref("hf_dinov2"), photos, *fields, "data.mean=0.5", "data.std=0.5", "model.dropout=0.1")
    assert (cfg.model.image_size, cfg.model.dtype, cfg.model.dropout) == (48, "float32", 0.1)
    assert (cfg.optim.lr, cfg.train.steps, cfg.data.mean) == (1e-3, 1, (0.5,))
    vit_jax.train(cfg, tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "4x4 to 6x6 by bicubic" in log
    assert "note: init saw its images otherwise" in log
    with pytest.raises(UserError, match=r"another model than model.width=64 \(it has 128\)"):
        vit_jax.train(configured(ref("hf_dinov2"), photos, "model.width=64"), tmp_path / "other")


def test_the_size_is_the_one_that_a_folder_s_images_are_cropped_to(ref, photos):
    folder = ref("hf_dinov2")
    told = json.loads((folder / "preprocessor_config.json").read_text())
    edge = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(told | edge | {"image_processor_type": "BitImageProcessor"})
    )
    cfg = configured(folder, photos)
    assert (cfg.model.image_size, cfg.data.crop_fraction) == (24, 0.75)
    assert load.read(folder).model.image_size == 24


def test_a_run_is_followed_too(workdir):
    spec = vit_jax.load(workdir).spec
    cfg = configured(workdir, "x", "data.name=digits", "train.steps=1", "train.epochs=0")
    assert cfg.model == dataclasses.replace(spec.model, **FRESH)
    assert preprocess_of(cfg.data) == spec.preprocess
    assert cfg.data.channels == 1


def test_what_cannot_be_followed_is_one_line(tmp_path, photos):
    (tmp_path / "w.pth").write_bytes(b"")
    half = {k: v for k, v in arrays(GOLDEN / "vit_token.npz").items() if "encoderblock_1" not in k}
    half.pop("Transformer/encoder_norm/bias")
    np.savez(tmp_path / "half.npz", **half)
    for ref, message in (
        ("", "configs/from_init.py follows weights: name them, --config configs/from_init.py:REF"),
        ("nothing", "nothing is no run directory, file or published checkpoint"),
        (tmp_path / "w.pth", "w.pth is a torch pickle"),
        (tmp_path / "half.npz", "half.npz does not fit the model that its shapes tell: 1 missing: norm/bias"),
        ("s3://bucket/w.npz", "s3://"),
    ):
        with pytest.raises(UserError) as error:
            configured(ref, photos)
        assert message in error.value.command
        assert "\n" not in error.value.command
    with pytest.raises(UserError, match=r"data.name=folder needs data.dir"):
        configured(GOLDEN / "vit_token.npz", "")
