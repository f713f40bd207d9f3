"""Outputs of timm's own NaFlexViT for files that this package writes.

As a program, where torch and timm are, it stores them in golden/naflex.npz.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from paths import GOLDEN
from timm_reference import stub_torchvision
from weight_files import trained_params

from vit_jax.patches import Native, Patches, cut
from vit_jax.sections import Model
from vit_jax.weights.save import write

STORED = GOLDEN / "naflex.npz"
P = 16
GAP = Model(
    **{
        "image_size": 256,
        "patch_size": P,
        "width": 64,
        "depth": 2,
        "heads": 1,
        "mlp_width": 256,
        "classes": 7,
    },
    **{"class_token": False, "registers": 4, "pooling": "gap", "final_norm": "pooled", "layer_scale": 1e-5},
    gelu="exact",
)
SIGLIP = dataclasses.replace(
    GAP, registers=0, pooling="map", final_norm="tokens", layer_scale=0.0, gelu="tanh"
)
# The model, and timm's name of it.
CASES = {
    "gap": (GAP, "naflexvit_base_patch16_gap"),
    "siglip": (SIGLIP, "naflexvit_base_patch16_siglip"),
}
TOKENS = (256, 400)  # of the stored grid, and of more
SIZES_HW = [(256, 256), (300, 120), (90, 500), (40, 40)]


def inputs(tokens: int) -> Patches:
    """Random pixels of four aspects, as Native resizes their images."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((len(SIZES_HW), tokens, P, P, 3), np.float32)
    grid = np.zeros((len(SIZES_HW), 2), np.int32)
    for i, size in enumerate(SIZES_HW):
        h, w = Native(P, tokens).fit(*size)
        made = cut(rng.normal(size=(h, w, 3)).astype(np.float32), P)
        pixels[i, : len(made)], grid[i] = made, (h // P, w // P)
    return Patches(pixels, grid)


def theirs(model: Any, given: Patches) -> np.ndarray:
    """timm's own outputs for patches, their coordinates and which of them are real."""
    import torch

    n = given.pixels.shape[1]
    at_n = np.arange(n)
    coordinates = np.stack([np.stack(np.divmod(at_n, x), axis=-1) for _, x in given.grid])
    real = at_n[None] < given.grid.prod(axis=1)[:, None]
    coordinates = np.where(real[..., None], coordinates, 0)
    with torch.no_grad():
        return model(
            torch.from_numpy(given.pixels.reshape(len(real), n, -1)),
            patch_coord=torch.from_numpy(coordinates),
            patch_valid=torch.from_numpy(real),
        ).numpy()


def outputs(name: str, folder: Path) -> list[np.ndarray]:
    """timm's, of our file of a case, for each of TOKENS."""
    stub_torchvision()
    import timm
    from safetensors.torch import load_file

    model, kind = CASES[name]
    write(folder / "w.safetensors", trained_params(model), model, dialect="naflexvit")
    scales = {"init_values": model.layer_scale} if model.layer_scale else {}
    sizes = {"embed_dim": model.width, "depth": model.depth, "num_heads": model.heads}
    loaded = timm.create_model(kind, num_classes=model.classes, **sizes, **scales).eval()
    loaded.load_state_dict(load_file(folder / "w.safetensors"))  # strict
    return [theirs(loaded, inputs(tokens)) for tokens in TOKENS]


def main() -> None:
    """Store the outputs of each case."""
    found = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found |= {f"{name}/{n}": y for n, y in zip(TOKENS, outputs(name, Path(folder)), strict=True)}
    np.savez_compressed(STORED, **found)


if __name__ == "__main__":
    main()
