"""The table of published sizes. Pure Python, so that config files load without jax.

Sources: ViT (arXiv:2010.11929 table 1), DeiT and AugReg for Ti and S (arXiv:2106.10270 table 2), scaling ViTs
for g and G (arXiv:2106.04560 table 2), shape-optimised So400m (arXiv:2305.13035), M as in big_vision;
hybrids (arXiv:2010.11929 appendix B.1 and arXiv:2106.10270 table 2); MLP-Mixer (arXiv:2105.01601 table 1).
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

# The patch is one pixel of the stem's output, but for R+Ti/16, whose root alone shrinks by 4 and whose
# patches are 8 x 8 of that: it is a /32 in truth, and /16 only by name.
#            size, stem_blocks, patch_size
HYBRID = {
    "R+Ti/16": ("Ti", (), 8),
    "R26+S/32": ("S", (2, 2, 2, 2), 1),
    "R26+B/32": ("B", (2, 2, 2, 2), 1),
    "R50+B/16": ("B", (3, 4, 9), 1),
    "R50+L/32": ("L", (3, 4, 6, 3), 1),
}

#         width depth mlp_width token_width
MIXER = {
    "S": (512, 8, 2048, 256),
    "B": (768, 12, 3072, 384),
    "L": (1024, 24, 4096, 512),
    "H": (1280, 32, 5120, 640),
}

# The sixteen whose checkpoints or parameter counts were published with the official code.
PUBLISHED = (
    *("Ti/16", "S/16", "B/16", "B/32", "B/8", "L/16", "L/32", "H/14"),
    *HYBRID,
    *("Mixer-B/16", "Mixer-B/32", "Mixer-L/16"),
)


def model(name: str) -> dict[str, Any]:
    """Model fields of `B/16`, `R26+S/32` or `Mixer-B/16`, to update a config's model section with.

    A ViT or Mixer takes any patch size, a hybrid is one of the table. Raises UserError.
    """
    if name in HYBRID:
        size, blocks, patch = HYBRID[name]
        return {"patch_size": patch, **_vit(size), "stem_width": 64, "stem_blocks": blocks}
    match = re.fullmatch(r"(Mixer-)?(\w+)/(\d+)", name)
    if match is None or match[2] not in (MIXER if match[1] else VIT):
        raise UserError(
            f"no variant {name!r}: write SIZE/PATCH with a size of {', '.join(VIT)}, "
            f"Mixer-SIZE/PATCH with one of {', '.join(MIXER)}, or one of {', '.join(HYBRID)}"
        )
    return {"patch_size": int(match[3]), **(_mixer(match[2]) if match[1] else _vit(match[2]))}


def _vit(size: str) -> dict[str, Any]:
    return dict(zip(("width", "depth", "heads", "mlp_width"), VIT[size], strict=True))


def _mixer(size: str) -> dict[str, Any]:
    sizes = dict(zip(("width", "depth", "mlp_width", "token_width"), MIXER[size], strict=True))
    no_tokens = {"heads": 1, "class_token": False, "posemb": "none", "pooling": "gap"}
    return {"family": "mixer", **sizes, **no_tokens}
