"""Writes tests/golden/torch_resize.npz: what torch makes of small grids. Needs torch; run by hand, once."""

from pathlib import Path

import numpy as np
import torch

SIZES = (((7, 7), (12, 12)), ((14, 14), (24, 24)), ((14, 14), (7, 7)), ((3, 5), (8, 2)), ((2, 9), (1, 4)))


def main() -> None:
    """Each pair of sizes, by bicubic and bilinear with and without antialiasing, in float64."""
    out = {}
    for old, new in SIZES:
        grid_hwd = np.random.default_rng(0).normal(size=(*old, 2)).astype(np.float32)
        key = f"{old[0]}x{old[1]}_{new[0]}x{new[1]}"
        out[f"{key}/grid"] = grid_hwd
        x_1dhw = torch.from_numpy(grid_hwd).double().permute(2, 0, 1)[None]
        for name, mode, antialias in (
            ("bicubic", "bicubic", False),
            ("bicubic_antialias", "bicubic", True),
            ("bilinear", "bilinear", False),
            ("bilinear_antialias", "bilinear", True),
        ):
            y = torch.nn.functional.interpolate(
                x_1dhw, size=new, mode=mode, align_corners=False, antialias=antialias
            )
            out[f"{key}/{name}"] = y[0].permute(1, 2, 0).float().numpy()
        y = torch.nn.functional.interpolate(x_1dhw, size=new, mode="bilinear", align_corners=True)
        out[f"{key}/official"] = y[0].permute(1, 2, 0).float().numpy()
    np.savez_compressed(Path(__file__).with_name("torch_resize.npz"), **out)


if __name__ == "__main__":
    main()
