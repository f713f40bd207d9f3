"""Models that other libraries made and wrote: read here, they compute what the library computes.

Random weights, float32 on both sides, outputs of order one. open_clip is no dependency of any extra: its test
runs where open_clip_torch is installed beside the extra `parity`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_reference
from weight_files import assert_same, outputs

from vit_jax.models import flexi
from vit_jax.weights.adapt import Wish
from vit_jax.weights.load import read
from vit_jax.weights.save import flatten, write

pytestmark = pytest.mark.parity
ATOL = 1e-5  # float32 on both sides, outputs of order one
VISION: dict[str, Any] = {
    **{
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "intermediate_size": 256,
}


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    torch_reference.stub_torchvision()
    torch.manual_seed(0)
    return torch


@pytest.fixture
def transformers(torch):
    return pytest.importorskip("transformers")


@pytest.fixture
def timm(torch):
    return pytest.importorskip("timm")


def shaken(torch, model):
    """The model with biases and scales apart from 0 and 1, positions and tokens of the size of patches."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            small = parameter.ndim == 1 or "position" in name or "token" in name or "pos_embed" in name
            parameter.add_(torch.randn_like(parameter) * 0.1 * small)
    return model.eval()


def made(torch, kind, config, folder):
    """A model of transformers with weights of its own, written by it to `folder`."""
    model = shaken(torch, kind(config))
    model.save_pretrained(folder)
    return model


def images(side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)


def run(torch, model, side: int = 32, **arguments: Any) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(images(side)).permute(0, 3, 1, 2), **arguments)


def agree(weights, wanted, side: int = 32) -> None:
    np.testing.assert_allclose(outputs(weights, images(side)), wanted.numpy(), rtol=0, atol=ATOL)


@pytest.mark.parametrize("kind", ["ViTMAEModel", "ViTMAEForPreTraining"])
def test_the_encoder_of_a_masked_autoencoder(torch, transformers, kind, tmp_path):
    config = transformers.ViTMAEConfig(**VISION, mask_ratio=0.0, decoder_num_hidden_layers=1)
    model = made(torch, getattr(transformers, kind), config, tmp_path)
    order = torch.arange(16, dtype=torch.float32).expand(2, -1)  # nothing is hidden, nothing changes places
    body = model.vit if kind.endswith("ForPreTraining") else model
    agree(read(tmp_path), run(torch, body, noise=order).last_hidden_state[:, 0])


def test_a_classifier_of_clip(torch, transformers, tmp_path):
    config = transformers.CLIPConfig(vision_config=VISION, text_config={"vocab_size": 9, "hidden_size": 8})
    config.num_labels = 5
    model = made(torch, transformers.CLIPForImageClassification, config, tmp_path)
    agree(read(tmp_path), run(torch, model).logits)


@pytest.mark.parametrize("quick", [True, False])
def test_an_image_tower_of_open_clip(torch, quick, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    vision = {
        "image_size": 32,
        "patch_size": 8,
        "width": 128,
        "layers": 2,
        "head_width": 64,
        "mlp_ratio": 2.0,
    }
    told = {"embed_dim": 48, "quick_gelu": quick, "vision_cfg": vision}
    text = {"context_length": 4, "vocab_size": 9, "width": 64, "heads": 1, "layers": 1}
    model = shaken(torch, open_clip.model.CLIP(**told, text_cfg=text))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": told | {"text_cfg": text}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    agree(read(tmp_path), run(torch, model.visual))


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_a_spatial_perception_encoder_of_timm(torch, timm, pool, tmp_path):
    from safetensors.torch import save_file

    arguments = {"img_size": 64, "depth": 2, "num_classes": 7, "global_pool": pool}
    model = shaken(torch, timm.create_model("vit_pe_spatial_tiny_patch16_512", **arguments))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    told = {"architecture": "vit_pe_spatial_tiny_patch16_512", "global_pool": pool, "num_classes": 7}
    told["pretrained_cfg"] = {"input_size": [3, 64, 64]}
    (tmp_path / "config.json").write_text(json.dumps(told))
    agree(read(tmp_path), run(torch, model, 64), 64)


SIZED = [
    ("ViT", {}, "pooler_output"),
    ("ViTMAE", {"mask_ratio": 0.0}, "last_hidden_state"),
    ("DeiT", {}, "last_hidden_state"),
    ("Dinov2", {"mlp_ratio": 2}, "pooler_output"),
    ("Dinov2WithRegisters", {"mlp_ratio": 2, "num_register_tokens": 3}, "pooler_output"),
    ("CLIPVision", {}, "pooler_output"),
    ("SiglipVision", {}, "pooler_output"),
    ("DINOv3ViT", {"num_register_tokens": 3}, "pooler_output"),
]


@pytest.mark.parametrize(("family", "fields", "output"), SIZED)
def test_positions_at_another_size_are_those_of_transformers(
    torch, transformers, family, fields, output, tmp_path
):
    config = getattr(transformers, f"{family}Config")(**VISION | fields)
    model = made(torch, getattr(transformers, f"{family}Model"), config, tmp_path)
    arguments: dict[str, Any] = (
        {"interpolate_pos_encoding": True} if family[:4] not in ("Dino", "DINO") else {}
    )
    if family == "ViTMAE":
        arguments["noise"] = torch.arange(36, dtype=torch.float32).expand(2, -1)
    wanted = run(torch, model, 48, **arguments)[output]
    agree(read(tmp_path, Wish(image_size=48)), wanted[:, 0] if wanted.ndim == 3 else wanted, 48)


def test_a_bare_vit_with_its_pooler_in_bfloat16_and_in_several_files(torch, transformers, tmp_path):
    config = transformers.ViTConfig(**VISION, hidden_act="gelu_pytorch_tanh")
    model = shaken(torch, transformers.ViTModel(config)).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    weights = read(tmp_path)
    assert (weights.model.pre_logits, weights.model.classes, weights.model.gelu) == (128, 0, "tanh")
    assert "bfloat16 to float32" in str(weights.report)
    agree(weights, run(torch, model.float()).pooler_output)


def test_a_classifier_without_qkv_biases_whose_labels_have_gaps(torch, transformers, tmp_path):
    config = transformers.ViTConfig(**VISION, qkv_bias=False, num_labels=4)
    model = made(torch, transformers.ViTForImageClassification, config, tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(tree | {"id2label": {"0": "cat", "2": "dog"}}))
    weights = read(tmp_path)
    assert (weights.model.qkv_bias, weights.class_names) == ("none", ("cat", "LABEL_1", "dog", "LABEL_3"))
    agree(weights, run(torch, model).logits)


@pytest.fixture(scope="module")
def flexivit(tmp_path_factory) -> tuple[Any, Path]:
    """timm's flexivit_small of two blocks, and the file of its weights."""
    torch = pytest.importorskip("torch")
    torch_reference.stub_torchvision()
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = shaken(torch, timm.create_model("flexivit_small", img_size=64, depth=2, num_classes=7))
    path = tmp_path_factory.mktemp("flexi") / "w.safetensors"
    save_file(model.state_dict(), path)
    return model, path


@pytest.mark.parametrize("size", [8, 12, 32])
def test_patches_of_another_size_are_those_of_big_vision_and_timm(torch, flexivit, size):
    """By timm's copy of big_vision's code, and by its newer form, which computes in float32."""
    from timm.layers import resample_patch_embed
    from timm.layers.patch_embed import resample_patch_embed_old

    model, path = flexivit
    kernel_dcyx = model.patch_embed.proj.weight.detach()
    got_yxcd = read(path, Wish(patch_size=size, image_size=6 * size)).params["embed"]["patch"]["kernel"]
    np.testing.assert_array_equal(got_yxcd, flexi.resize(kernel_dcyx.permute(2, 3, 1, 0).numpy(), size))
    how = {"interpolation": "bilinear", "antialias": False}  # big_vision's; timm's own default is bicubic
    for resample in (resample_patch_embed_old, resample_patch_embed):
        wanted = resample(kernel_dcyx, [size, size], **how)
        # Their products are in float32, ours in float64; weights below one.
        np.testing.assert_allclose(got_yxcd.transpose(3, 2, 0, 1), wanted, rtol=0, atol=1e-6)


def test_a_flexivit_at_another_patch_size_is_timms_with_the_same_kernel(torch, timm, flexivit):
    _, path = flexivit
    weights = read(path, Wish(patch_size=8, image_size=48))
    theirs = timm.create_model("flexivit_small", img_size=48, patch_size=8, depth=2, num_classes=7).eval()
    folder = path.parent / "again"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write(folder / "w.safetensors", weights.params, weights.model, dialect="timm")
    from safetensors.torch import load_file

    theirs.load_state_dict(load_file(folder / "w.safetensors"))
    agree(weights, run(torch, theirs, 48), 48)
    assert_same(flatten(read(folder / "w.safetensors").params), flatten(weights.params))
