"""Fields of small models of each family, and the shapes of their parameters."""

from typing import Any

import jax

from vit_jax.models import build
from vit_jax.sections import MIXER_ONLY, Model

SMALL: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 16,
    "width": 24,
    "depth": 2,
    "heads": 3,
    "mlp_width": 40,
    "classes": 5,
}
HYBRID = SMALL | {"patch_size": 1, "stem_width": 32, "stem_blocks": (1, 2)}
MIXER = SMALL | MIXER_ONLY | {"family": "mixer", "token_width": 12}
NO_TOKENS = SMALL | MIXER_ONLY
BEIT = SMALL | {"posemb": "none", "relative_bias": True, "layer_scale": 0.1, "qkv_bias": "query_value"}
DINOV3 = SMALL | {"posemb": "none", "rotary": "dinov3", "registers": 2, "layer_scale": 0.1}
DINOV3 |= {"qkv_bias": "query_value", "mlp": "swiglu"}


def shapes(cfg: Model, channels: int = 3) -> dict[str, tuple[int, ...]]:
    model = build.build(cfg)
    key = jax.random.key(0)
    tree = jax.eval_shape(lambda: build.init(model, key, image_hw=cfg.image_hw, channels=channels))
    return {"/".join(k.key for k in path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}
