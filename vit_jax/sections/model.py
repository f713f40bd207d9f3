"""What a model is: the section `model` of a config."""

import dataclasses
from typing import Any, Literal

from vit_jax.fields import at_least, check, fail, field, rate, with_role

# Roles of a field that says how a model is trained or used, not what it is.
TRAINING: Any = {"in_file": False, "may_differ": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Architecture and numerics: together with a class count, all that is needed to build the module.

    Roles of fields: `mixer` is the only value that a Mixer takes; `in_file=False` marks what no weights file
    says; `may_differ=True` marks what training may change of the weights that it starts from.
    """

    family: Literal["vit", "mixer"] = field("vit", "Vision Transformer, hybrids included, or MLP-Mixer")
    image_size: int | tuple[int, int] = field(
        224, "input pixels: side of a square, or (height, width)", least=1, **TRAINING
    )
    patch_size: int = field(16, "pixels of a patch's side; after a stem, pixels of its output", least=1)
    stem_width: int = field(
        0, "features of the ResNet stem's first convolution, 64 in hybrids; 0: no stem", least=0, mixer=0
    )
    stem_blocks: tuple[int, ...] = field((), "units of each stage of the stem; empty: only its root", least=1)
    width: int = field(192, "features of a token", least=1)
    depth: int = field(12, "encoder blocks", least=1)
    heads: int = field(3, "attention heads of a block", least=1, mixer=1)
    mlp_width: int = field(768, "hidden features of a block's MLP", least=1)
    mlp: Literal["gelu", "swiglu"] = field(
        "gelu", "down(gelu(up x)) or down(silu(gate x) * up x)", mixer="gelu"
    )
    token_width: int = field(0, "hidden features of the Mixer's MLP over tokens", least=0)
    classes: int = field(0, "output classes; 0: as many as the data set has", least=0, may_differ=True)
    class_token: bool = field(True, "prepend a learned class token", mixer=False)
    distill_token: bool = field(
        False, "DeiT's second token and head; training returns both heads' logits", mixer=False
    )
    registers: int = field(
        0, "learned tokens without a position, before the patches, that no head reads", least=0, mixer=0
    )
    posemb: Literal["learned", "sincos2d", "none"] = field("learned", "position embedding", mixer="none")
    posemb_class_slot: bool = field(
        True, "learned positions cover the class token too, as in official files", in_file=False
    )
    pooling: Literal["token", "gap", "map"] = field(
        "token", "class token, mean of patches, or attention", mixer="gap"
    )
    pre_logits: int = field(
        0, "features of a Dense + tanh before the head; 0: none", least=0, mixer=0, may_differ=True
    )
    qk_norm: bool = field(False, "LayerNorm of each head's queries and keys", mixer=False)
    layer_scale: float = field(
        0.0, "initial value of a learned scale on each branch; 0: none", least=0, mixer=0.0, **TRAINING
    )
    dropout: float = rate("dropout rate after the embedding, the attention and both MLP layers", **TRAINING)
    stochastic_depth: float = rate("drop rate of the last block, growing linearly from 0", **TRAINING)
    gelu: Literal["tanh", "exact"] = field("tanh", "GELU form; the official files use tanh")
    norm_eps: float = field(1e-6, "epsilon of every LayerNorm", least=0)
    head_bias: float = field(0.0, "initial bias of the zero-initialised head", **TRAINING)
    dtype: Literal["float32", "bfloat16"] = field(
        "float32", "dtype of matrix products; parameters stay float32", **TRAINING
    )

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def stride(self) -> int:
        """Input pixels from one patch to the next: the patch size times the stem's stride."""
        stem = 4 * 2 ** max(len(self.stem_blocks) - 1, 0) if self.stem_width else 1
        return self.patch_size * stem

    @property
    def grid_hw(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid."""
        h, w = self.image_hw
        return h // self.stride, w // self.stride

    def __post_init__(self) -> None:
        check(self, "model")
        self._check_sizes()
        self._check_tokens()
        self._check_family()

    def _check_sizes(self) -> None:
        step = self.stride
        source = "model.patch_size" if not self.stem_width else "patch times stem stride"
        for px in self.image_hw:
            if px < step or px % step:
                near = f"{px // step * step} or {(px // step + 1) * step}" if px > step else str(step)
                fail(f"model.image_size={px} is not a multiple of {source}={step}: use {near}")
        if self.width % self.heads:
            fits = [h for h in range(1, self.width + 1) if self.width % h == 0]
            near = min(fits, key=lambda h: abs(h - self.heads))
            fail(f"model.heads={self.heads} does not divide model.width={self.width}: use {near} heads")
        if self.posemb == "sincos2d" and self.width % 4:
            fail(f"model.width={self.width} is not a multiple of 4, which model.posemb=sincos2d needs")
        if self.stem_width % 32:
            fail(f"model.stem_width={self.stem_width} is not a multiple of the 32 norm groups: use 64, or 0")
        if self.stem_blocks and not self.stem_width:
            fail(f"model.stem_blocks={self.stem_blocks} needs model.stem_width above 0")

    def _check_tokens(self) -> None:
        if self.pooling == "token" and not self.class_token:
            fail("model.pooling=token needs model.class_token=True: set it, or use pooling=gap or map")
        if self.distill_token and (self.pooling != "token" or self.pre_logits):
            fail("model.distill_token=True needs model.pooling=token and model.pre_logits=0")

    def _check_family(self) -> None:
        if self.family == "vit":
            if self.token_width:
                fail(f"model.token_width={self.token_width} is for model.family=mixer: set it to 0")
            return
        at_least("model.token_width (of model.family=mixer)", self.token_width, 1)
        for name, only in MIXER_ONLY.items():
            if getattr(self, name) != only:
                fail(f"model.{name}={getattr(self, name)} has no meaning for model.family=mixer: use {only}")


MIXER_ONLY = with_role(Model, "mixer")
UNTOLD = {name for name, in_file in with_role(Model, "in_file").items() if not in_file}
FREE = {name for name, may_differ in with_role(Model, "may_differ").items() if may_differ}
