"""Every torch family computes what timm and transformers compute, and survives every way there and back."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch_reference
from torch_reference import CASES, STORED, case
from weight_files import arrays, assert_same, outputs

from vit_jax.errors import UserError
from vit_jax.models.build import build, count, init
from vit_jax.sections import Model, Preprocess
from vit_jax.weights.adapt import Weights, Wish
from vit_jax.weights.formats import safetensors
from vit_jax.weights.load import read
from vit_jax.weights.save import flatten, write

# Float32 on both sides, outputs of order one.
ATOL = 1e-5


def target(name: str, folder: Path) -> Path:
    """Where the case is written: a folder where the family has one."""
    return folder / ("hf" if CASES[name][0] == "huggingface" else "w.safetensors")


def stored(name: str, folder: Path) -> Weights:
    """The case, written in its dialect and read again."""
    model, params, _ = case(name)
    write(target(name, folder), params, model, dialect=CASES[name][0])
    return read(target(name, folder))


def untold(model: Model) -> Model:
    """The model but for how positions are resized, which a family has and a case does not say."""
    return dataclasses.replace(model, posemb_method="official")


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_stored_ones_of_the_real_library(name, tmp_path):
    model, params, images_bhwc = case(name)
    weights = stored(name, tmp_path)
    wanted = dataclasses.replace(model, layer_scale=weights.model.layer_scale)
    assert untold(weights.model) == untold(wanted)
    assert_same(flatten(weights.params), flatten(params))
    got = outputs(weights, images_bhwc)
    np.testing.assert_allclose(got, np.load(STORED)[name], rtol=0, atol=ATOL)


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_the_real_library_loads_our_file_and_we_load_its_file(name, tmp_path):
    for library in ("torch", "transformers", "timm", "safetensors"):
        if library == "timm":
            torch_reference.stub_torchvision()
        pytest.importorskip(library)
    from safetensors.torch import save_file

    real = torch_reference.theirs(name, tmp_path)
    _, _, images_bhwc = case(name)
    got = outputs(read(target(name, tmp_path)), images_bhwc)
    np.testing.assert_allclose(got, torch_reference.outputs(name, real), rtol=0, atol=ATOL)
    if CASES[name][0] == "huggingface":
        real.save_pretrained(tmp_path / "theirs")
        back = read(tmp_path / "theirs")
    else:
        save_file(real.state_dict(), tmp_path / "theirs.safetensors")
        back = read(tmp_path / "theirs.safetensors", Wish(heads=2))
    assert_same(flatten(back.params), flatten(case(name)[1]))
    np.testing.assert_allclose(outputs(back, images_bhwc), got, rtol=0, atol=0)


# The cases that another dialect can hold, and the file it is written to.
HOPS = [
    ("timm_vit", "huggingface", "folder"),
    ("timm_vit", "timm", "w.npz"),
    ("timm_deit", "huggingface", "folder"),
    ("timm_gap", "huggingface", "folder"),
    ("hf_vit_tanh", "official", "w.npz"),
    ("hf_vit_tanh", "official", "w.safetensors"),
    ("hf_siglip", "big_vision", "w.npz"),
    ("hf_siglip_classifier", "big_vision", "w.npz"),
    ("hf_dinov2", "dinov2", "w.safetensors"),
    ("hf_dinov2", "timm", "w.safetensors"),
    ("hf_dinov2_registers", "dinov2", "w.npz"),
    ("hf_dinov2_swiglu", "dinov2", "w.safetensors"),
    ("hf_dinov2_swiglu", "timm", "w.npz"),
    ("timm_swiglu", "timm", "w.npz"),
]


@pytest.mark.parametrize(("name", "dialect", "to"), HOPS)
def test_there_and_back_keeps_every_byte(name, dialect, to, tmp_path):
    first = stored(name, tmp_path)
    write(tmp_path / to, first.params, first.model, dialect=dialect, preprocess=first.preprocess)
    second = read(tmp_path / to)
    back = tmp_path / "back"
    back.mkdir()
    again = target(name, back)
    write(again, second.params, second.model, dialect=CASES[name][0], preprocess=first.preprocess)
    there = target(name, tmp_path)
    files = [there] if there.is_file() else [there / "model.safetensors", there / "config.json"]
    for file in files:
        assert (again if there.is_file() else again / file.name).read_bytes() == file.read_bytes()
    assert dialect in ("official", "big_vision") or untold(second.model) == untold(first.model)


def test_class_positions_are_merged_where_timm_has_registers_and_compute_the_same(tmp_path):
    first = stored("hf_dinov2_registers", tmp_path)
    write(tmp_path / "w.safetensors", first.params, first.model, dialect="timm")
    second = read(tmp_path / "w.safetensors")
    assert not second.model.posemb_class_slot
    images_bhwc = case("hf_dinov2_registers")[2]
    # One sum is made before instead of inside: float32's last bits, in features of order one.
    np.testing.assert_allclose(outputs(second, images_bhwc), outputs(first, images_bhwc), rtol=0, atol=5e-6)


def test_other_numerics_are_refused_or_accepted_by_name(tmp_path):
    model, params, _ = case("hf_vit_tanh")
    with pytest.raises(UserError, match=r"model.gelu=tanh \(read as exact\): .*numerics=theirs"):
        write(tmp_path / "w.safetensors", params, model, dialect="timm")
    assert not list(tmp_path.iterdir())
    write(tmp_path / "w.safetensors", params, model, dialect="timm", numerics="theirs")
    assert read(tmp_path / "w.safetensors").model.gelu == "exact"


@pytest.mark.parametrize(
    ("name", "dialect", "message"),
    [
        ("timm_registers", "huggingface", "cannot hold head/bias, head/kernel"),
        ("timm_vit", "dinov2", "no family of this vit model"),
        ("hf_deit", "big_vision", "cannot hold embed/distill_token"),
        ("timm_vit", "big_vision", "model.gelu=exact"),
        ("timm_qk_norm", "huggingface", "query_norm/scale"),
    ],
)
def test_what_a_dialect_cannot_hold_is_refused(name, dialect, message, tmp_path):
    model, params, _ = case(name)
    with pytest.raises(UserError) as error:
        write(tmp_path / ("folder" if dialect == "huggingface" else "w.npz"), params, model, dialect=dialect)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_tells_names_preprocessing_and_is_written_again(tmp_path):
    model, params, _ = case("hf_vit_tanh")
    names = tuple(f"class {i}" for i in range(model.classes))
    wanted = Preprocess(resize="crop", crop_fraction=32 / 36, filter="pil_bicubic", mean=(0.1, 0.2, 0.3))
    write(tmp_path / "hf", params, model, dialect="huggingface", preprocess=wanted, class_names=names)
    weights = read(tmp_path / "hf")
    assert weights.class_names == names
    assert weights.preprocess == wanted
    assert "tanh GELU, epsilon 1e-06" in str(weights.report)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["hidden_act"], config["layer_norm_eps"]) == ("gelu_pytorch_tanh", 1e-6)
    config["hidden_act"] = "relu"
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="hidden_act=relu is no activation"):
        read(tmp_path / "hf")


def test_a_timm_folder_tells_heads_and_preprocessing(tmp_path):
    model, params, _ = case("timm_vit")
    write(tmp_path / "model.safetensors", params, model, dialect="timm")
    told = {"mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "interpolation": "bilinear", "crop_pct": 1.0}
    tree = {"architecture": "vit_tiny", "model_args": {"num_heads": 2}, "pretrained_cfg": told}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    preprocess = read(tmp_path).preprocess
    assert preprocess.mean == (0.1, 0.2, 0.3)
    assert (preprocess.filter, preprocess.crop_fraction) == ("pil_bilinear", 1.0)


def test_positions_are_resized_as_the_family_does(tmp_path):
    for name, method in (("timm_vit", "bicubic_antialias"), ("hf_vit", "bicubic")):
        folder = tmp_path / name
        folder.mkdir()
        stored(name, folder)
        assert read(target(name, folder), Wish(image_size=48)).report.resized[0].what.endswith(f"by {method}")


def test_mask_tokens_and_text_towers_are_explained_as_ignored(tmp_path):
    assert "pretraining only" in str(stored("hf_dinov2", tmp_path).report)
    model, params, _ = case("hf_siglip")
    write(tmp_path / "vision.npz", params, model, dialect="huggingface")
    tree = {f"vision_model.{k}": v for k, v in arrays(tmp_path / "vision.npz").items()}
    tree |= {"text_model.final_layer_norm.weight": np.zeros(3, np.float32), "logit_scale": np.zeros(1)}
    np.savez(tmp_path / "both.npz", **tree)
    report = read(tmp_path / "both.npz", Wish(heads=2)).report
    assert "the text tower" in str(report)


def test_deit_iii_of_its_authors_is_read(tmp_path):
    model, params, _ = case("timm_deit3")
    write(tmp_path / "w.npz", params, model, dialect="timm")
    old = {
        k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v
        for k, v in arrays(tmp_path / "w.npz").items()
    }
    np.savez(tmp_path / "old.npz", **old)
    assert_same(flatten(read(tmp_path / "old.npz").params), flatten(params))


def test_heads_that_nothing_tells_are_asked_for(tmp_path):
    model, _, _ = case("timm_vit")
    narrow = dataclasses.replace(model, width=96, heads=3)
    write(tmp_path / "w.npz", _params(narrow), narrow, dialect="timm")
    np.savez(tmp_path / "bare.npz", **arrays(tmp_path / "w.npz"))
    with pytest.raises(UserError, match="no array tells the heads of a model of width 96: pass heads="):
        read(tmp_path / "bare.npz")
    assert read(tmp_path / "bare.npz", Wish(heads=3)).model == dataclasses.replace(
        narrow, posemb_method="bicubic_antialias"
    )


def _params(model: Any) -> dict[str, Any]:
    from weight_files import nest, random_params

    return nest(random_params(model))


@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_a_torch_pickle_is_refused_with_the_way_out(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match=r"torch pickle, which can run code.*safetensors.torch.save_file"):
        read(path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has a config.json but no|has only a torch pickle"):
        read(tmp_path)


def test_broken_safetensors_are_refused_in_one_line(tmp_path):
    path = tmp_path / "w.safetensors"
    write(path, case("timm_vit")[1], case("timm_vit")[0], dialect="timm")
    whole = path.read_bytes()
    for data, says in (
        (b"", "not a safetensors file"),
        (whole[:200], "not a safetensors file, or cut short"),
        (whole[:-4], "cut short"),
        (b"\xff" * 8 + whole[8:], "not a safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "damaged header"),
        ((4).to_bytes(8, "little") + b"{{{{", "no header that could be read"),
        (whole.replace(b"[384]", b"[385]", 1), "declares shape"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            read(path)
        assert says in str(error.value)
        assert "\n" not in str(error.value)


def test_half_precision_is_read(tmp_path):
    model, params, _ = case("timm_vit")
    write(tmp_path / "w.safetensors", params, model, dialect="timm")
    archive = safetensors.Archive(tmp_path / "w.safetensors")
    np.savez(tmp_path / "half.npz", **{n: archive.read(n).astype(np.float16) for n in archive.entries})
    assert "float16 to float32" in str(read(tmp_path / "half.npz").report)
    assert count(read(tmp_path / "half.npz").params) == count(params)


# All that each image processor of transformers writes, at its own defaults.
NORMAL = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": None}
HALF, CLIP_MEAN, CLIP_STD = (
    [0.5] * 3,
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
)
SQUARE = {"do_resize": True, "size": {"height": 24, "width": 24}, "image_mean": HALF, "image_std": HALF}
EDGE = {"do_resize": True, "size": {"shortest_edge": 32}, "do_center_crop": True, "resample": 3}
EDGE |= {"crop_size": {"height": 24, "width": 24}, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
PROCESSORS = {
    "ViTImageProcessor": NORMAL | SQUARE | {"resample": 2},
    "SiglipImageProcessor": NORMAL | SQUARE | {"resample": 3, "processor_class": "SiglipProcessor"},
    "BitImageProcessor": NORMAL | EDGE,
    "CLIPImageProcessorFast": NORMAL | EDGE | {"default_to_square": False, "device": None, "do_pad": False},
    "DeiTFeatureExtractor": NORMAL
    | SQUARE
    | {"resample": 3, "size": 32, "crop_size": 24, "do_center_crop": True},
}
CLIP = ("crop", 0.75, "pil_bicubic", CLIP_MEAN, CLIP_STD)


@pytest.fixture
def hf_folder_of(tmp_path):
    """`make(kind, **changes)`: a ViT stored for 32 px, beside a processor's file with some keys changed."""
    model, params, _ = torch_reference.case("hf_vit")
    write(tmp_path / "hf", params, model, dialect="huggingface")

    def make(kind, **changes):
        told = {"image_processor_type": kind} | PROCESSORS[kind] | changes
        kept = {name: value for name, value in told.items() if value != "absent"}
        (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(kept))
        return tmp_path / "hf"

    return make


@pytest.mark.parametrize(
    ("kind", "changes", "wanted", "side"),
    [
        ("ViTImageProcessor", {}, ("squash", None, "pil_bilinear", (0.5,), (0.5,)), 24),
        ("SiglipImageProcessor", {}, ("squash", None, "pil_bicubic", (0.5,), (0.5,)), 24),
        ("BitImageProcessor", {}, CLIP, 24),
        ("CLIPImageProcessorFast", {"size": 32, "crop_size": 24}, CLIP, 24),
        ("DeiTFeatureExtractor", {}, ("squash_crop", 0.75, "pil_bicubic", (0.5,), (0.5,)), 24),
        ("ViTImageProcessor", {"do_normalize": False}, ("squash", None, "pil_bilinear", (0.0,), (1.0,)), 24),
        ("ViTImageProcessor", {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3},
         ("squash", None, "pil_bilinear", (0.5,), (0.2,)), 24),
        ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
         ("squash", None, "pil_bilinear", (0.5,), (0.5,)), 24),
        ("ViTImageProcessor", {"do_resize": False}, ("squash", None, "pil_bilinear", (0.5,), (0.5,)), 32),
        ("BitImageProcessor", {"image_mean": "absent", "image_std": "absent", "resample": None}, CLIP, 24),
    ],
)  # fmt: skip
def test_every_key_of_a_processor_is_obeyed_and_written_again(
    hf_folder_of, tmp_path, kind, changes, wanted, side
):
    weights = read(hf_folder_of(kind, **changes))
    seen, model = weights.preprocess, weights.model
    fraction = None if seen.resize == "squash" else seen.crop_fraction
    assert (seen.resize, fraction, seen.filter) == wanted[:3]
    np.testing.assert_allclose(seen.mean, wanted[3], rtol=1e-12)
    np.testing.assert_allclose(seen.std, wanted[4], rtol=1e-12)
    assert model.image_hw == (side, side)
    write(tmp_path / "again", weights.params, model, dialect="huggingface", preprocess=seen)
    again = read(tmp_path / "again")
    assert (again.preprocess, again.model) == (seen, model)


def test_a_size_on_the_command_line_is_stronger_than_the_processors(hf_folder_of):
    weights = read(hf_folder_of("BitImageProcessor"), Wish(image_size=32))
    assert (weights.model.image_size, weights.preprocess.crop_fraction) == (32, 0.75)
    assert not weights.report.resized


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("ViTImageProcessor", {"do_pad": True, "pad_size": 8}, r"do_pad=True, pad_size=8 is not done here"),
        ("ViTImageProcessor", {"crop_pct": 0.9}, "crop_pct=0.9 is not done here"),
        ("ViTImageProcessor", {"size": {"longest_edge": 32}}, "size={'longest_edge': 32} is not done here"),
        ("BitImageProcessor", {"do_center_crop": False}, "without do_center_crop gives images of many sizes"),
        ("BitImageProcessor", {"do_resize": False}, "do_center_crop without do_resize is not done here"),
        ("BitImageProcessor", {"crop_size": 40}, "crop_size=40 of size=.* is not done here"),
        ("BitImageProcessor", {"pad": 0}, "pad=0 is not done here: remove what the images do not need"),
        ("BitImageProcessor", {"resample": 1}, "resample=1 is no filter here"),
        ("BitImageProcessor", {"rescale_factor": 0}, "preprocessor_config.json: "),
        ("ViTImageProcessor", {"image_processor_type": "LevitImageProcessor"}, "LevitImageProcessor is no i"),
    ],
)  # fmt: skip
def test_keys_that_are_not_done_are_refused_by_name(hf_folder_of, kind, changes, told):
    with pytest.raises(UserError, match=told):
        read(hf_folder_of(kind, **changes))


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ({"0": "cat", "2": "dog"}, ("cat", "LABEL_1", "dog")),
        ({str(i): f"LABEL_{i}" for i in range(5)}, None),
        ({str(i): "cat" for i in range(60)}, "its config.json names 60"),
        ({"cat": "0"}, "id2label has a key that is no number"),
    ],
)
def test_names_of_classes_with_gaps_are_kept(hf_folder_of, labels, wanted):
    folder = hf_folder_of("ViTImageProcessor")
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"id2label": labels}))
    if isinstance(wanted, str):
        with pytest.raises(UserError, match=wanted):
            read(folder)
    elif wanted:
        weights = read(folder)
        others = (f"LABEL_{i}" for i in range(3, weights.model.classes))
        assert weights.class_names == (*wanted, *others)
    else:
        assert read(folder).class_names == ()


def test_a_grey_model_is_written_with_one_channel(tmp_path):
    model = Model(
        image_size=8, patch_size=4, width=16, depth=1, heads=2, mlp_width=16, classes=3, gelu="exact"
    )
    params = init(build(model), jax.random.key(0), image_hw=(8, 8), channels=1)
    write(tmp_path / "g", params, model, dialect="huggingface", preprocess=Preprocess(channels=1))
    assert json.loads((tmp_path / "g" / "config.json").read_text())["num_channels"] == 1
    assert json.loads((tmp_path / "g" / "preprocessor_config.json").read_text())["image_mean"] == [0.5]
    assert read(tmp_path / "g").preprocess.channels == 1
