"""timm's NaFlexViT and transformers' SigLIP 2 NaFlex: their files give their outputs on their own inputs."""

import dataclasses
import json
from pathlib import Path

import jax
import naflex_reference
import numpy as np
import pytest
from naflex_reference import CASES, GAP, STORED, TOKENS, P, inputs, theirs
from timm_reference import stub_torchvision
from weight_files import assert_same, trained_params

from vit_jax.errors import UserError
from vit_jax.models.build import build
from vit_jax.patches import Native, Patches
from vit_jax.weights.formats import hf_folder
from vit_jax.weights.load import read
from vit_jax.weights.save import flatten, write

# Float32 through a few blocks on both sides, outputs of order one.
ATOL = 1e-5


def ours(path: Path, given: Patches) -> np.ndarray:
    weights = read(path)
    model, params = build(weights.model), weights.params
    apply = lambda x: model.apply({"params": params}, x, logits=bool(weights.model.classes))
    return np.asarray(jax.jit(apply)(given))


def test_a_file_is_written_and_read_with_every_byte(tmp_path):
    params = trained_params(GAP)
    write(tmp_path / "w.safetensors", params, GAP, dialect="naflexvit")
    weights = read(tmp_path / "w.safetensors")
    assert weights.model == dataclasses.replace(
        GAP, posemb_method="bicubic_antialias", layer_scale=weights.model.layer_scale
    )
    assert (weights.preprocess.resize, weights.preprocess.max_tokens) == ("native", 576)
    assert_same(flatten(weights.params), flatten(params))


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_stored_ones_of_timm(name, tmp_path):
    model, _ = CASES[name]
    write(tmp_path / "w.safetensors", trained_params(model), model, dialect="naflexvit")
    with np.load(STORED) as stored:
        for tokens in TOKENS:
            wanted = stored[f"{name}/{tokens}"]
            assert np.ptp(wanted, axis=0).max() > 0.01
            got = ours(tmp_path / "w.safetensors", inputs(tokens))
            np.testing.assert_allclose(got, wanted, rtol=0, atol=ATOL)


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_the_stored_outputs_are_timms(name, tmp_path):
    pytest.importorskip("torch")
    stub_torchvision()
    pytest.importorskip("timm")
    with np.load(STORED) as stored:
        for tokens, wanted in zip(TOKENS, naflex_reference.outputs(name, tmp_path), strict=True):
            np.testing.assert_allclose(stored[f"{name}/{tokens}"], wanted, rtol=0, atol=1e-6)  # another CPU


def test_a_timm_folder_tells_tokens_and_refuses_other_positions(tmp_path):
    told = {"architecture": "naflexvit_base_patch16_gap", "global_pool": "avg"}
    told["pretrained_cfg"] = {"input_size": [3, 384, 384], "crop_pct": 1.0}
    (tmp_path / "config.json").write_text(json.dumps(told))
    write(tmp_path / "model.safetensors", trained_params(GAP), GAP, dialect="naflexvit")
    weights = read(tmp_path)
    assert (weights.preprocess.resize, weights.preprocess.max_tokens) == ("native", 576)
    assert weights.model.image_size == 256  # the stored grid; each image has positions of its own
    (tmp_path / "config.json").write_text(
        json.dumps(told | {"architecture": "naflexvit_base_patch16_par_gap"})
    )
    with pytest.raises(UserError, match="naflexvit_base_patch16_par_gap is not built here, as it keeps"):
        read(tmp_path)


def test_siglip2s_processor_is_obeyed(tmp_path):
    told = {"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 1024, "patch_size": 16}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    seen = hf_folder.read(tmp_path)
    assert seen.preprocess is not None
    assert (seen.preprocess.resize, seen.preprocess.max_tokens, seen.seen_hw) == ("native", 1024, None)
    assert seen.preprocess.filter == "pil_bilinear"
    assert seen.stated == {"patch_size": 16}  # compared with the arrays


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_resize", False),
        ("resample", 3),
        ("do_rescale", False),
        ("rescale_factor", 1 / 127.5),
        ("do_normalize", False),
        ("image_mean", [0.1, 0.2, 0.3]),
        ("image_std", [0.1, 0.2, 0.3]),
        ("max_num_patches", 64),
        ("patch_size", 14),
    ],
)
def test_another_value_of_a_key_of_siglip2s_processor_is_seen_or_refused(tmp_path, key, value):
    (tmp_path / "config.json").write_text("{}")

    def told(**changes):
        text = json.dumps({"image_processor_type": "Siglip2ImageProcessor"} | changes)
        (tmp_path / "preprocessor_config.json").write_text(text)
        return hf_folder.read(tmp_path)

    if key == "do_resize":
        with pytest.raises(UserError, match="own aspect without do_resize"):
            told(do_resize=value)
    else:
        assert told(**{key: value}) != told()


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("naflexvit_base_patch16_gap", {"embed_dim": 128, "depth": 2, "num_heads": 2, "init_values": 0.5}),
        ("naflexvit_base_patch16_siglip", {"embed_dim": 128, "depth": 2, "num_heads": 2}),
    ],
)
def test_timms_model_is_loaded_and_computes_the_same(name, changes, tmp_path):
    pytest.importorskip("torch")
    stub_torchvision()
    timm = pytest.importorskip("timm")
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    for tokens in (256, 400):  # of the stored grid, and of more
        given = inputs(tokens)
        wanted = theirs(model, given)
        got = ours(tmp_path / "w.safetensors", given)
        assert np.ptp(wanted, axis=0).max() > 0.01
        np.testing.assert_allclose(got, wanted, rtol=0, atol=ATOL)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["Siglip2VisionModel", "Siglip2ForImageClassification"])
def test_transformers_model_is_loaded_and_computes_the_same(kind, tmp_path):
    pytest.importorskip("torch")
    stub_torchvision()
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"num_patches": 64, "patch_size": P}
    if kind == "Siglip2VisionModel":
        model = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**vision)).eval()
    else:
        config = transformers.Siglip2Config(vision_config=vision, text_config=sizes, num_labels=5)
        model = transformers.Siglip2ForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    given = inputs(100)
    n = given.pixels.shape[1]
    mask = (np.arange(n)[None] < given.grid.prod(axis=1)[:, None]).astype(np.int64)
    with torch.no_grad():
        out = model(
            pixel_values=torch.from_numpy(given.pixels.reshape(len(mask), n, -1)),
            pixel_attention_mask=torch.from_numpy(mask),
            spatial_shapes=torch.from_numpy(given.grid.astype(np.int64)),
        )
    wanted = (out.pooler_output if kind == "Siglip2VisionModel" else out.logits).numpy()
    assert np.ptp(wanted, axis=0).max() > 0.01
    np.testing.assert_allclose(ours(tmp_path, given), wanted, rtol=0, atol=ATOL)


@pytest.mark.parity
def test_sizes_are_those_of_timm():
    pytest.importorskip("torch")
    stub_torchvision()
    pytest.importorskip("timm")
    from timm.data.naflex_transforms import get_image_size_for_seq

    rng = np.random.default_rng(0)
    for h, w, p, n in zip(*(rng.integers(20, most, 300) for most in (3000, 3000, 33, 1100)), strict=True):
        wanted = get_image_size_for_seq((int(h), int(w)), int(p), int(n))[1]
        assert Native(int(p), int(n)).fit(int(h), int(w)) == wanted
