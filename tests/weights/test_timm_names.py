"""Models by the names of timm: its own files load and agree, and what is not built here is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_reference
from paths import GOLDEN
from torch_reference import case
from weight_files import arrays, assert_same

from vit_jax.errors import UserError
from vit_jax.models.build import build
from vit_jax.weights import published
from vit_jax.weights.adapt import Wish
from vit_jax.weights.formats import safetensors, timm_folder
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
    "beit_base_patch16_224": 2,
    "mixer_b16_224": 12,
    "vit_tiny_r_s16_p8_224": 2,
    "vit_small_r26_s32_224": 2,
    "vit_base_r50_s16_224": 1,
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
    if weights.model.stem_width:
        write(tmp_path / "again.safetensors", weights.params, weights.model, dialect="timm")
        assert_same(loaded(tmp_path / "again.safetensors"), loaded(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", ["hybrid_resnet", "hybrid_stem"])
def test_a_hybrid_in_timms_names_computes_with_timms_epsilons(name, tmp_path):
    official, path = read(GOLDEN / f"{name}.npz"), tmp_path / "w.safetensors"
    model = dataclasses.replace(official.model, gelu="exact")
    with pytest.raises(UserError, match=r"model.stem_eps=official \(read as timm\): .*numerics=theirs"):
        write(path, official.params, model, dialect="timm")
    write(path, official.params, model, dialect="timm", numerics="theirs")
    back = read(path)
    assert back.model == dataclasses.replace(model, stem_eps="timm", posemb_method="bicubic_antialias")
    assert_same(flatten(back.params), flatten(official.params))
    with pytest.raises(UserError, match=r"model.stem_eps=timm \(read as official\)"):
        write(
            tmp_path / "w.npz", back.params, dataclasses.replace(back.model, gelu="tanh"), dialect="official"
        )


@pytest.mark.parity
@pytest.mark.parametrize("name", ["timm_dinov3", "timm_eva02", "timm_pe"])
def test_rotary_positions_of_another_resolution_are_timms(timm, name, tmp_path):
    theirs = torch_reference.theirs(name, tmp_path)
    theirs.set_input_size((48, 48))
    agree(read(tmp_path / "w.safetensors", Wish(image_size=48)), theirs, 48)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["timm_dinov3", "timm_eva02_clip", "timm_pe", "timm_rpn", "timm_beit"])
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
        ("rel_pos_bias.relative_position_bias_table", "BEiT as it is pretrained"),
        ("shared_position_bias.relative_position_bias_table", "BEiT as it is pretrained"),
        ("beit.encoder.relative_position_bias.relative_position_bias_table", "BEiT as it is pretrained"),
        ("patch_embed.backbone.0.conv.weight", "a hybrid of another stem than ResNetV2"),
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


def plain_folder(tmp_path, **changes):
    """A plain ViT of 11 classes beside timm's config.json, of which some keys are changed."""
    tree = {"architecture": "vit_tiny_patch16_224", "num_classes": 11, "num_features": 128} | changes
    return folder(tmp_path, "timm_vit", **tree)


SEEN = {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "num_classes": 11}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"crop_pct": 1.0, "interpolation": "bilinear"}, {"filter": "pil_bilinear", "crop_fraction": 1.0}),
        ({"crop_mode": "squash", "crop_pct": 1.0}, {"resize": "squash", "crop_fraction": 1.0}),
        ({"crop_mode": "squash", "crop_pct": 0.9}, {"resize": "squash_crop", "crop_fraction": 0.9}),
        ({"test_input_size": [3, 64, 64], "license": "apache-2.0", "custom_load": False}, {}),
        ({"mean": None, "std": None} , {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}),
    ],
)  # fmt: skip
def test_keys_of_timms_pretrained_cfg_are_obeyed(tmp_path, changes, wanted):
    told = {key: value for key, value in (SEEN | changes).items() if value is not None}
    seen = read(plain_folder(tmp_path, pretrained_cfg=told)).preprocess
    usual = {"resize": "crop", "crop_fraction": 0.875, "filter": "pil_bicubic", "mean": (0.1, 0.2, 0.3)}
    assert {key: getattr(seen, key) for key in usual | wanted} == usual | wanted


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"global_pool": "avgmax"}, "global_pool=avgmax is not done here: use avg, token, map"),
        ({"num_classes": 10}, "another model than its JSON files say: classes is 11, not 10"),
        ({"num_features": 192}, "another model than its JSON files say: width is 128, not 192"),
        ({"pretrained_cfg": SEEN | {"label_offset": 1}}, "pretrained_cfg.label_offset=1 is not done here"),
        ({"pretrained_cfg": SEEN | {"crop_mode": "border"}}, "crop_mode=border is not done here"),
        ({"pretrained_cfg": SEEN | {"interpolation": "lanczos"}}, "interpolation=lanczos is not done here"),
        ({"model_args": {"num_heads": 2, "act_layer": "relu"}}, "model_args.act_layer=relu is not done here"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "model_args.norm_layer=rmsnorm is not done here"),
        ({"stem_type": "conv"}, "stem_type=conv is not done here"),
    ],
)  # fmt: skip
def test_keys_of_timms_config_that_are_not_done_are_refused_by_name(tmp_path, changes, told):
    with pytest.raises(UserError, match=told) as error:
        read(plain_folder(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_timms_config_names_classes_pooling_and_the_gelu(tmp_path):
    args = {"num_heads": 2, "act_layer": "quick_gelu", "img_size": 32, "drop_path_rate": 0.1}
    weights = read(plain_folder(tmp_path, model_args=args, global_pool="avg", label_names=["cat", "dog"]))
    assert (weights.model.gelu, weights.model.pooling) == ("quick", "gap")
    assert weights.class_names[:3] == ("cat", "dog", "LABEL_2")
    named = read(plain_folder(tmp_path, pretrained_cfg=SEEN | {"label_names": {"1": "dog"}}))
    assert named.class_names[:2] == ("LABEL_0", "dog")


def test_a_thousand_classes_of_timm_are_imagenets_where_the_tag_says_so():
    assert published.class_names(None, 1000, imagenet=True)[0] == "tench, Tinca tinca"
    assert published.class_names(None, 1000) == ()
    told = lambda tag: {"num_classes": 1000, "pretrained_cfg": {"tag": tag}}
    read_told = lambda tag: timm_folder.read_timm(told(tag), Path("config.json"))
    assert read_told("augreg_in21k_ft_in1k").imagenet
    assert read_told("augreg_in21k_ft_in1k_384").imagenet
    assert not read_told("augreg_in21k").imagenet
    assert not read_told("mine").imagenet


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("model_cfg", "pool", "max"),
        ("vision_cfg", "attentional_pool", True),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "pos_embed_type", "sin_cos_2d"),
        ("vision_cfg", "final_ln_after_pool", True),
        ("preprocess_cfg", "resize_mode", "longest"),
        ("preprocess_cfg", "interpolation", "random"),
        ("preprocess_cfg", "mode", "L"),
    ],
)
def test_keys_of_open_clip_that_are_not_done_are_refused_by_name(part, key, value):
    tree = {"model_cfg": {"vision_cfg": {}}, "preprocess_cfg": {}}
    (tree["model_cfg"]["vision_cfg"] if part == "vision_cfg" else tree[part])[key] = value
    with pytest.raises(UserError, match=rf"{key}={value} is not done here"):
        timm_folder.read_open_clip(tree, Path("open_clip_config.json"))


def test_keys_of_open_clip_are_obeyed():
    vision = {"image_size": 256, "timm_model_name": "vit_so400m_patch16_siglip_256", "timm_pool": "map"}
    vision |= {"norm_kwargs": {"eps": 1e-6}, "timm_proj": "none"}
    seen = {
        "size": 384,
        "resize_mode": "squash",
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    tree = {"model_cfg": {"embed_dim": 1152, "vision_cfg": vision}, "preprocess_cfg": seen}
    told = timm_folder.read_open_clip(tree, Path("open_clip_config.json"))
    assert told.numerics == {"gelu": "tanh", "norm_eps": 1e-6, "branch_norm": "before", "pooling": "map"}
    assert (told.image_hw, told.seen_hw) == ((256, 256), (384, 384))
    assert (told.preprocess.resize, told.preprocess.filter, told.preprocess.std) == (
        "squash",
        "pil_bilinear",
        (0.5,),
    )
