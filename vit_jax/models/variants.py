"""The table of published sizes. Pure Python, so that config files load without jax.

Sources: ViT (arXiv:2010.11929 table 1), DeiT and AugReg for Ti and S (arXiv:2106.10270 table 2), scaling ViTs
for g and G (arXiv:2106.04560 table 2), shape-optimised So400m (arXiv:2305.13035), M as in big_vision.
"""

import re
from typing import Any

from vit_jax.errors import UserError

#         width depth heads mlp_width
VIT = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "M": (512, 12, 8, 2048),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "So400m": (1152, 27, 16, 4304),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "G": (1664, 48, 16, 8192),
}


def vit(name: str) -> dict[str, Any]:
    """Model fields of a size and patch such as `B/16`, to update a config's model section with."""
    match = re.fullmatch(r"(\w+)/(\d+)", name)
    if match is None or match[1] not in VIT:
        raise UserError(f"no ViT variant {name!r}: write SIZE/PATCH with a size of {', '.join(VIT)}")
    sizes = dict(zip(("width", "depth", "heads", "mlp_width"), VIT[match[1]], strict=True))
    return {"patch_size": int(match[2]), **sizes}
