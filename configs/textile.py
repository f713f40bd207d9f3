"""Defects in 2,000 simulated pictures of fabric: none, all over, or in a spot. arXiv:2501.12596.

    python train.py --config configs/textile.py --config.data.dir=textile --workdir runs/textile

docs/textile.md has where they come from, and what was reached.
"""

from typing import Any

from vit_jax import config


def get_config(arg: str = "") -> Any:
    """A ViT of 0.1 M parameters that sees every pixel: 250 px in patches of 25. Takes no argument."""
    c = config.default()
    c.model.update(image_size=250, patch_size=25, width=64, depth=2, heads=4, mlp_width=128, mlp="swiglu")
    c.model.update(class_token=False, pooling="map")
    c.data.update(name="folder", channels=1, augment="pad", pad_px=12, cache_gib=0.2, threads=2)
    c.optim.update(name="adamw", lr=3e-3, warmup_steps=0.1, weight_decay=0.05, clip_norm=1.0)
    c.train.update(epochs=15.0, batch_size=32, eval_every=168, checkpoint_every=500)
    return c
