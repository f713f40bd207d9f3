"""timm's logits for files that this package writes. As a program, it stores them in golden/timm.npz."""

import enum
import importlib.util
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
from paths import GOLDEN
from weight_files import trained_params

from vit_jax.models import variants
from vit_jax.sections import Model
from vit_jax.weights.save import write

NAMES = {
    "Ti/16": "vit_tiny_patch16_224",
    "R+Ti/16": "vit_tiny_r_s16_p8_224",
    "R26+S/32": "vit_small_r26_s32_224",
}
CLASSES = 11
STORED = GOLDEN / "timm.npz"


def case(name: str) -> tuple[Model, dict[str, Any], np.ndarray]:
    """A model, parameters of the size that training has and an image, made by numpy from fixed seeds."""
    model = Model(**variants.model(name), classes=CLASSES)
    images_bhwc = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    return model, trained_params(model), images_bhwc


def stub_torchvision() -> None:
    """timm imports torchvision for its data sets and a norm that no model here has: empty modules do."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    if importlib.util.find_spec("transformers"):  # first: it asks for a torchvision that has more than this
        import transformers

        assert transformers.ViTModel
    for name in (
        "",
        ".ops",
        ".ops.misc",
        ".models",
        ".models.feature_extraction",
        ".datasets",
        ".transforms",
    ):
        sys.modules[f"torchvision{name}"] = module = types.ModuleType(f"torchvision{name}")
        module.__path__ = []
    transforms = sys.modules["torchvision.transforms"]
    sys.modules["torchvision.transforms.functional"] = functional = types.ModuleType("functional")
    modes = ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")
    functional.InterpolationMode = enum.Enum("InterpolationMode", {m: m.lower() for m in modes})
    transforms.functional, transforms.InterpolationMode = functional, functional.InterpolationMode
    sys.modules["torchvision"].transforms = transforms
    for name, module in sys.modules.items():
        if name.startswith("torchvision"):
            module.__getattr__ = _placeholder


def _placeholder(name: str) -> type:
    """Any class that is imported and never used."""
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def logits(path: Path, name: str, images_bhwc: np.ndarray, *, official_eps: bool) -> np.ndarray:
    """Of timm's own model with tanh GELU, loaded by timm's own reader of official files.

    `official_eps` puts the published code's two epsilons in place of timm's: 1e-5 added to the standard
    deviation of a kernel where timm adds 1e-8 to its variance, and 1e-6 in GroupNorm where timm has 1e-5.
    """
    stub_torchvision()
    import timm
    import torch

    model = timm.create_model(NAMES[name], act_layer="gelu_tanh", num_classes=CLASSES).eval()
    model.load_pretrained(str(path))
    if official_eps:
        for module in model.modules():
            if isinstance(module, timm.layers.GroupNormAct):
                module.eps = 1e-6
            if isinstance(module, timm.layers.StdConv2dSame):
                _standardise(module)
    with torch.no_grad():
        return model(torch.from_numpy(images_bhwc).permute(0, 3, 1, 2)).numpy()


def _standardise(conv: Any) -> None:
    """Give a weight-standardising convolution a kernel from which its own rule makes the official one."""
    import torch

    with torch.no_grad():
        w = conv.weight
        std, mean = torch.std_mean(w, dim=(1, 2, 3), keepdim=True, correction=0)
        wanted = (w - mean) / (std + 1e-5)
        conv.weight.copy_(wanted)
        conv.eps = 1e-12  # nothing, beside a variance of one; torch wants it above zero
        scale = std / (std + 1e-5)  # what dividing by the standard deviation of `wanted` takes away again
    conv.register_forward_hook(lambda module, inputs, output: output * scale.reshape(1, -1, 1, 1))


def main() -> None:
    """Store the logits of every case, with timm's own epsilons and with the official ones."""
    out = {}
    for name in NAMES:
        model, params, images_bhwc = case(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "w.npz"
            write(path, params, model, dialect="official")
            for own in (False, True):
                key = f"{name}/{'timm' if own else 'official'}_eps"
                out[key] = logits(path, name, images_bhwc, official_eps=not own)
    np.savez(STORED, **out)


if __name__ == "__main__":
    main()
