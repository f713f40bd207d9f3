"""Models by the names of timm: its own files load and agree, and what is not built here is refused."""

import json

import jax
import numpy as np
import pytest
import torch_reference
from torch_reference import case
from weight_files import arrays, assert_same

from vit_jax.errors import UserError
from vit_jax.models.build import build
from vit_jax.weights.adapt import Wish
from vit_jax.weights.formats import safetensors
from vit_jax.weights.load import read
from vit_jax.weights.save import flatten, write

ATOL = 1e-5  # float32 on both sides, outputs of order one
NAMES = {
    "vit_tiny_patch16_224": 2,
    "vit_medium_patch16_gap_240": 2,
    "vit_base_patch16_clip_224": 2,
    "vit_base_patch16_rpn_224": 2,
    "vit_wee_patch16_reg1_gap_256": 2,
    "vit_small_patch16_dinov3": 2,
    "vit_base_patch16_siglip_gap_224": 2,
    "eva02_tiny_patch14_224": 2,
    "vit_pe_core_tiny_patch16_384": 2,
    "flexivit_small": 2,
    "mixer_b16_224": 12,
}


@pytest.fixture
def timm():
    pytest.importorskip("torch")
    torch_reference.stub_torchvision()
    return pytest.importorskip("timm")


def loaded(path):
    archive = safetensors.Archive(path)
    return {name: archive.read(name) for name in archive.entries}


def agree(weights, theirs, side):
    import torch

    images_bhwc = np.random.default_rng(0).normal(size=(1, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images_bhwc).permute(0, 3, 1, 2)).numpy()
    got = jax.jit(build(weights.model).apply)({"params": weights.params}, images_bhwc)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=ATOL)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_timms_own_model_loads_and_agrees(timm, name, tmp_path):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    arguments = {} if NAMES[name] == 12 else {"depth": NAMES[name]}
    model = timm.create_model(name, pretrained=False, num_classes=7, **arguments).eval()
    with torch.no_grad():  # biases and scales apart from 0 and 1
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    weights = read(tmp_path / "w.safetensors")
    agree(weights, model, weights.model.image_hw[0])


@pytest.mark.parity
@pytest.mark.parametrize("name", ["timm_dinov3", "timm_eva02", "timm_pe"])
def test_rotary_positions_of_another_resolution_are_timms(timm, name, tmp_path):
    theirs = torch_reference.theirs(name, tmp_path)
    theirs.set_input_size((48, 48))
    agree(read(tmp_path / "w.safetensors", Wish(image_size=48)), theirs, 48)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["timm_dinov3", "timm_eva02_clip", "timm_pe", "timm_rpn"])
def test_gradients_are_timms(timm, name, tmp_path):
    import torch

    theirs, images_bhwc = torch_reference.theirs(name, tmp_path), case(name)[2]
    (theirs(torch.from_numpy(images_bhwc).permute(0, 3, 1, 2)) ** 2).mean().backward()
    weights = read(tmp_path / "w.safetensors")
    loss = lambda params: (build(weights.model).apply({"params": params}, images_bhwc) ** 2).mean()
    ours = jax.jit(jax.grad(loss))(weights.params)
    got = np.asarray(ours["embed"]["patch"]["kernel"]).transpose(3, 2, 0, 1)
    wanted = theirs.patch_embed.proj.weight.grad.numpy()  # behind every block
    np.testing.assert_allclose(got, wanted, rtol=0, atol=ATOL * max(1, abs(wanted).max()))


@pytest.mark.parity
def test_a_file_in_the_names_of_dinov3s_authors_is_what_timm_reads(timm, tmp_path):
    import torch
    from timm.models.eva import checkpoint_filter_fn

    model, params, _ = case("hf_dinov3_gated")
    write(tmp_path / "w.safetensors", params, model, dialect="dinov3")
    assert_same(flatten(read(tmp_path / "w.safetensors").params), flatten(params))
    tree = {n: torch.from_numpy(a) for n, a in loaded(tmp_path / "w.safetensors").items()}
    theirs = torch_reference.theirs("timm_dinov3_gated", tmp_path)  # of the same parameters, and a head
    found, wanted = checkpoint_filter_fn(tree, theirs), theirs.state_dict()
    assert wanted.keys() - found.keys() == {"head.weight", "head.bias"}
    for name in wanted.keys() & found.keys():
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("blocks.0.attn.relative_position_bias_table", "BEiT"),
        ("patch_embed.backbone.stem.conv.weight", "a hybrid in the names of timm"),
        ("rope.freqs", "learned rotary frequencies"),
        ("blocks.0.attn.lambda_q1", "differential attention"),
        ("blocks.0.attn.in_proj.weight", "parallel attention"),
    ],
)
def test_models_that_are_not_built_here_are_refused_by_name(extra, told, tmp_path):
    model, params, _ = case("timm_vit")
    write(tmp_path / "w.npz", params, model, dialect="timm")
    np.savez(tmp_path / "x.npz", **arrays(tmp_path / "w.npz") | {extra: np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=f"{told}.* is not built here") as error:
        read(tmp_path / "x.npz")
    assert "\n" not in str(error.value)


def folder(tmp_path, name, **config):
    model, params, _ = case(name)
    write(tmp_path / "model.safetensors", params, model, dialect="timm")
    told = {"model_args": {"num_heads": 2}, "pretrained_cfg": {}} | config
    (tmp_path / "config.json").write_text(json.dumps(told))
    return tmp_path


def test_the_name_of_a_timm_model_decides_what_its_arrays_do_not_tell(tmp_path):
    where = lambda **config: read(folder(tmp_path, "timm_rpn", **config)).model.branch_norm
    assert where(architecture="vit_base_patch16_rpn_224") == "after"
    assert where(architecture="vit_base_patch16_224") == "before"
    clip = lambda name: read(folder(tmp_path, "timm_clip", architecture=name)).model.gelu
    assert clip("vit_base_patch16_clip_quickgelu_224") == "quick"
    assert clip("vit_base_patch16_clip_224") == "exact"
    with pytest.raises(UserError, match="vit_small_patch16_rope_ape_224 is not built here"):
        read(folder(tmp_path, "timm_deit3", architecture="vit_small_patch16_rope_ape_224"))


@pytest.mark.parametrize(("quick", "gelu"), [(True, "quick"), (False, "exact")])
def test_the_names_of_openai_need_their_folder_which_tells_gelu(quick, gelu, tmp_path):
    model, params, _ = case("hf_clip_projection")
    write(tmp_path / "w.safetensors", params, model, dialect="clip")
    np.savez(tmp_path / "bare.npz", **loaded(tmp_path / "w.safetensors"))
    with pytest.raises(UserError, match=r"no array tells model.gelu of clip .*open_clip_config.json"):
        read(tmp_path / "bare.npz", Wish(heads=2))
    write(tmp_path / "open_clip_model.safetensors", params, model, dialect="clip")
    vision = {"image_size": 32, "width": 128, "head_width": 64}
    told = {"model_cfg": {"quick_gelu": quick, "vision_cfg": vision}, "preprocess_cfg": {"mean": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    weights = read(tmp_path)
    assert (weights.model.gelu, weights.model.heads, weights.preprocess.mean) == (gelu, 2, (0.5,))
    assert_same(flatten(weights.params), flatten(params))
