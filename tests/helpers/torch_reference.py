"""Outputs of timm's and transformers' own models for files that this package writes.

As a program, where torch, timm and transformers are, it stores them in golden/torch_families.npz and
golden/torch_features.npz.
"""

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from paths import GOLDEN
from timm_reference import stub_torchvision
from weight_files import trained_params

from vit_jax.sections import MIXER_ONLY, Model
from vit_jax.weights.save import write

STORED = GOLDEN / "torch_families.npz"
FEATURES = GOLDEN / "torch_features.npz"
CLASSES = 11
SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "width": 128,
    "depth": 2,
    "heads": 2,
    "mlp_width": 256,
    "gelu": "exact",
}
DINOV3: dict[str, Any] = {
    **{"posemb": "none", "rotary": "dinov3", "registers": 4, "layer_scale": 1e-5, "qkv_bias": "query_value"},
    "norm_eps": 1e-5,
}
EVA02: dict[str, Any] = {"rotary": "eva02", "rotary_grid": 16, "qkv_bias": "query_value", "mlp": "swiglu"}
CLIP: dict[str, Any] = {"embed_norm": True, "patch_bias": False, "norm_eps": 1e-5, "gelu": "quick"}
BEIT: dict[str, Any] = {
    "posemb": "none",
    "relative_bias": True,
    "layer_scale": 0.1,
    "qkv_bias": "query_value",
}
EVA: dict[str, Any] = {"class": "Eva", "use_rot_pos_emb": True}
EVA_DINOV3 = EVA | {
    "init_values": 1e-5,
    "rope_type": "dinov3",
    "rope_temperature": 100.0,
    "num_reg_tokens": 4,
}
EVA_DINOV3 |= {"rope_rotate_half": True, "use_abs_pos_emb": False, "use_fc_norm": False, "eps": 1e-5}
# dialect, fields of the model, arguments of timm's or fields of transformers' model
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "timm_vit": ("timm", {}, {}),
    "timm_gap": ("timm", {"class_token": False, "pooling": "gap"}, {"class_token": False, "fc_norm": False}),
    "timm_map": ("timm", {"class_token": False, "pooling": "map"}, {"class_token": False}),
    "timm_qk_norm": ("timm", {"qk_norm": True}, {"qk_norm": True}),
    "timm_deit": ("timm", {"distill_token": True}, {}),
    "timm_deit3": (
        "timm",
        {"layer_scale": 1e-4, "posemb_class_slot": False},
        {"init_values": 1e-4, "no_embed_class": True},
    ),
    "timm_registers": (
        "timm",
        {"layer_scale": 1e-4, "posemb_class_slot": False, "registers": 4},
        {"init_values": 1e-4, "no_embed_class": True, "reg_tokens": 4},
    ),
    "timm_swiglu": ("timm", {"layer_scale": 1e-4, "mlp": "swiglu"}, {"init_values": 1e-4, "swiglu": True}),
    "timm_fc_norm": (
        "timm",
        {"class_token": False, "pooling": "gap", "final_norm": "pooled", "registers": 1, "layer_scale": 1e-5},
        {"class_token": False, "no_embed_class": True, "reg_tokens": 1, "init_values": 1e-5},
    ),
    "timm_fc_norm_class": ("timm", {"pooling": "gap", "final_norm": "pooled"}, {}),
    "timm_no_bias": (
        "timm",
        {"qkv_bias": "none", "layer_scale": 1e-4},
        {"qkv_bias": False, "init_values": 1e-4},
    ),
    "timm_rpn": (
        "timm",
        {
            "class_token": False,
            "pooling": "gap",
            "final_norm": "pooled",
            "qkv_bias": "none",
            "branch_norm": "after",
        },
        {"class_token": False, "qkv_bias": False, "block_fn": "ResPostBlock"},
    ),
    "timm_clip": ("timm", {"embed_norm": True, "patch_bias": False, "norm_eps": 1e-5}, {"pre_norm": True}),
    "timm_mixer": (
        "timm",
        MIXER_ONLY | {"family": "mixer", "token_width": 24},
        {"class": "MlpMixer", "mlp_ratio": (24 / 128, 2.0), "num_blocks": 2},
    ),
    "timm_dinov3": (
        "timm",
        DINOV3 | {"qkv_bias": "none", "pooling": "gap"},
        EVA_DINOV3 | {"qkv_bias": False},
    ),
    "timm_dinov3_gated": (
        "timm",
        DINOV3 | {"mlp": "swiglu", "pooling": "gap"},
        EVA_DINOV3 | {"swiglu_mlp": True, "swiglu_align_to": 8},
    ),
    "timm_eva02": (
        "timm",
        EVA02 | {"mlp_norm": True, "pooling": "gap", "final_norm": "pooled"},
        EVA | {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "ref_feat_shape": (16, 16)},
    ),
    "timm_eva02_clip": (
        "timm",
        EVA02 | {"mlp_norm": True, "attention_norm": True},
        EVA
        | {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "ref_feat_shape": (16, 16)}
        | {"scale_attn_inner": True, "global_pool": "token"},
    ),
    "timm_eva02_tiny": (
        "timm",
        EVA02 | {"pooling": "gap", "final_norm": "pooled"},
        EVA | {"swiglu_mlp": True, "ref_feat_shape": (16, 16)},
    ),
    "timm_pe": (
        "timm",
        {
            **{"rotary": "pe", "rotary_grid": 4, "embed_norm": True, "patch_bias": False, "norm_eps": 1e-5},
            **{"pooling": "map", "pool_heads": 8},
        },
        EVA
        | {
            "global_pool": "map",
            "attn_type": "rope",
            "use_pre_transformer_norm": True,
            "rope_grid_offset": 1.0,
        }
        | {"ref_feat_shape": (4, 4), "rope_grid_indexing": "xy", "attn_pool_num_heads": 8, "eps": 1e-5},
    ),
    "timm_rope_vit": (
        "timm",
        {"posemb": "none", "rotary": "rope_vit", "layer_scale": 1e-5},
        EVA
        | {"attn_type": "rope", "init_values": 1e-5, "global_pool": "token", "use_abs_pos_emb": False}
        | {"rope_grid_indexing": "xy", "rope_temperature": 100.0},
    ),
    "timm_rope_reg": (
        "timm",
        DINOV3
        | {"rotary": "eva02", "rotary_grid": 16, "class_token": False, "registers": 1, "pooling": "gap"}
        | {"final_norm": "pooled", "norm_eps": 1e-6},
        EVA
        | {"init_values": 1e-5, "class_token": False, "num_reg_tokens": 1, "use_abs_pos_emb": False}
        | {"ref_feat_shape": (16, 16)},
    ),
    "timm_beit": (
        "timm",
        BEIT | {"pooling": "gap", "final_norm": "pooled"},
        {"class": "Beit", "qkv_bias": True, "init_values": 0.1, "use_abs_pos_emb": False}
        | {"use_rel_pos_bias": True},
    ),
    "hf_beit": ("huggingface", BEIT | {"pooling": "gap", "final_norm": "pooled", "norm_eps": 1e-12}, {}),
    "hf_dinov3": ("huggingface", DINOV3 | {"classes": 0}, {}),
    "hf_dinov3_gated": ("huggingface", DINOV3 | {"classes": 0, "mlp": "swiglu"}, {}),
    "hf_clip": ("huggingface", CLIP | {"classes": 0}, {}),
    "hf_clip_projection": (
        "huggingface",
        CLIP | {"classes": 0, "pre_logits": 48, "pre_logits_form": "linear"},
        {},
    ),
    "hf_dinov2_classifier": ("huggingface", {"layer_scale": 1.0, "pooling": "token_gap"}, {}),
    "hf_dinov2_registers_classifier": (
        "huggingface",
        {"layer_scale": 1.0, "pooling": "token_gap", "registers": 4},
        {},
    ),
    "hf_deit_one_head": (
        "huggingface",
        {"norm_eps": 1e-12, "distill_token": True, "distill_head": False},
        {},
    ),
    "hf_vit_no_bias": ("huggingface", {"norm_eps": 1e-12, "qkv_bias": "none"}, {}),
    "hf_vit": ("huggingface", {"norm_eps": 1e-12}, {}),
    "hf_vit_tanh": ("huggingface", {"gelu": "tanh"}, {}),
    "hf_vit_pooler": ("huggingface", {"norm_eps": 1e-12, "classes": 0, "pre_logits": 128}, {}),
    "hf_deit": ("huggingface", {"norm_eps": 1e-12, "distill_token": True}, {}),
    "hf_dinov2": ("huggingface", {"layer_scale": 1.0, "classes": 0}, {}),
    "hf_dinov2_registers": ("huggingface", {"layer_scale": 1.0, "classes": 0, "registers": 4}, {}),
    "hf_dinov2_swiglu": (
        "huggingface",
        {"layer_scale": 1.0, "classes": 0, "mlp": "swiglu", "mlp_width": 344},
        {},
    ),
    "hf_siglip": (
        "huggingface",
        {"classes": 0, "class_token": False, "pooling": "map", "gelu": "tanh"},
        {},
    ),
    "hf_siglip_classifier": (
        "huggingface",
        {"class_token": False, "pooling": "gap", "gelu": "tanh"},
        {},
    ),
}


def case(name: str) -> tuple[Model, dict[str, Any], np.ndarray]:
    """A model, parameters of the size that training has and two images, made by numpy from fixed seeds."""
    model = Model(**SIZES | {"classes": CLASSES} | CASES[name][1])
    images_bhwc = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    return model, trained_params(model), images_bhwc


def theirs(name: str, folder: Path) -> Any:
    """The real library's model, loaded by the library from what this package wrote in `folder`."""
    model, params, _ = case(name)
    dialect, _, arguments = CASES[name]
    if dialect == "timm":
        write(folder / "w.safetensors", params, model, dialect="timm")
        return _timm(name, folder / "w.safetensors", arguments)
    write(folder / "hf", params, model, dialect="huggingface")
    stub_torchvision()
    import transformers

    kinds = {
        "hf_beit": "BeitForImageClassification",
        "hf_vit_pooler": "ViTModel",
        "hf_vit": "ViTForImageClassification",
        "hf_deit_one_head": "DeiTForImageClassification",
        "hf_dinov3": "DINOv3ViTModel",
        "hf_clip_projection": "CLIPVisionModelWithProjection",
        "hf_clip": "CLIPVisionModel",
        "hf_dinov2_registers_classifier": "Dinov2WithRegistersForImageClassification",
        "hf_dinov2_classifier": "Dinov2ForImageClassification",
        "hf_deit": "DeiTForImageClassificationWithTeacher",
        "hf_dinov2_registers": "Dinov2WithRegistersModel",
        "hf_dinov2": "Dinov2Model",
        "hf_siglip_classifier": "SiglipForImageClassification",
        "hf_siglip": "SiglipVisionModel",
    }
    kind = next(kind for prefix, kind in kinds.items() if name.startswith(prefix))
    loaded, report = getattr(transformers, kind).from_pretrained(folder / "hf", output_loading_info=True)
    # SigLIP's classifier loads the text tower nowhere, and needs none.
    assert not [n for n in report["missing_keys"] if "text_model" not in n], report["missing_keys"]
    assert not report["unexpected_keys"], report["unexpected_keys"]
    return loaded.eval()


def _timm(name: str, path: Path, arguments: dict[str, Any]) -> Any:
    stub_torchvision()
    import timm
    import torch
    from safetensors.torch import load_file
    from timm.layers import SwiGLUPacked
    from timm.models.deit import VisionTransformerDistilled

    arguments = dict(arguments)
    kinds = {
        "Eva": timm.models.eva.Eva,
        "Beit": timm.models.beit.Beit,
        "MlpMixer": timm.models.mlp_mixer.MlpMixer,
    }
    kind = kinds.get(arguments.pop("class", ""), timm.models.VisionTransformer)
    kind = VisionTransformerDistilled if name == "timm_deit" else kind
    if "block_fn" in arguments:
        arguments["block_fn"] = getattr(timm.models.vision_transformer, arguments["block_fn"])
    if eps := arguments.pop("eps", None) or (1e-5 if arguments.get("pre_norm") else None):
        arguments["norm_layer"] = functools.partial(timm.layers.LayerNorm, eps=eps)
    if arguments.pop("swiglu", False):
        arguments |= {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 4.0}
    averaged = ("timm_gap", "timm_fc_norm", "timm_fc_norm_class", "timm_rpn")
    pool = "avg" if name in averaged or kind in kinds.values() else "map" if name == "timm_map" else "token"
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    if kind is kinds["MlpMixer"]:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128}
    model = kind(**sizes | {"num_classes": CLASSES, "global_pool": pool} | arguments)
    if name == "timm_map":  # timm leaves no say over the hidden width of its pooling
        model.attn_pool.mlp = timm.layers.Mlp(128, 256)
    model.load_state_dict(load_file(path))  # strict: no array missing, none left over
    return model.eval()


def outputs(name: str, model: Any) -> np.ndarray:
    """Logits, or what the model has in their place: the features that a head would see."""
    import torch

    _, _, images_bhwc = case(name)
    x = torch.from_numpy(images_bhwc).permute(0, 3, 1, 2)
    with torch.no_grad():
        if name.startswith("timm"):
            return model(x).numpy()
        out = model(pixel_values=x)
    return next(out[key] for key in ("logits", "image_embeds", "pooler_output") if key in out).numpy()


def features(name: str, model: Any) -> dict[str, np.ndarray]:
    """Of the first image: all tokens (`none`), those after the first block (`block_0`), what the head sees.

    timm's forward_features, forward_intermediates and pre-logits, transformers' last_hidden_state and
    pooler_output; without what a model does not give.
    """
    import torch

    x = torch.from_numpy(case(name)[2][:1]).permute(0, 3, 1, 2)
    with torch.no_grad():
        if name.startswith("timm"):
            tokens = model.forward_features(x)
            told = {
                "norm": True,
                "output_fmt": "NLC",
                "return_prefix_tokens": True,
                "intermediates_only": True,
            }
            (block_0,) = model.forward_intermediates(x, indices=[0], **told)
            block_0 = torch.cat(block_0[::-1], dim=1) if isinstance(block_0, tuple) else block_0
            found = {"none": tokens, "block_0": block_0}
            if name != "timm_deit":  # of two heads, it gives the mean of what they see
                found["model"] = model.forward_head(tokens, pre_logits=True)
        else:
            body = getattr(model, "vision_model", model.base_model)
            body = model if name.startswith("hf_dinov3") else body
            out = body(pixel_values=x)
            found = {"none": out.last_hidden_state, "model": out.get("pooler_output")}
    return {kind: array.numpy() for kind, array in found.items() if array is not None}


# The cases whose features are stored, too.
UNFEATURED = (
    "timm_no_bias",
    "timm_rpn",
    "timm_fc_norm_class",
    "timm_clip",
    "timm_mixer",
    "timm_dinov3_gated",
)
UNFEATURED += ("timm_eva02", "timm_pe", "timm_rope", "hf_dinov3", "hf_clip", "hf_dinov2_classifier")
UNFEATURED += ("hf_dinov2_registers_classifier", "hf_deit_one_head", "hf_vit_no_bias")
FEATURED = tuple(name for name in CASES if not name.startswith(UNFEATURED))


def main() -> None:
    """Store the outputs of every case, and features of most."""
    out, kept = {}, {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            model = theirs(name, Path(folder))
        out[name] = outputs(name, model)
        found = features(name, model) if name in FEATURED else {}
        kept |= {f"{name}/{kind}": array for kind, array in found.items()}
    np.savez(STORED, **out)
    np.savez(FEATURES, **kept)


if __name__ == "__main__":
    main()
