"""What a model is: the section `model` of a config."""

import dataclasses
from typing import Any, Literal

from vit_jax.fields import at_least, check, fail, field, rate, with_role

PosembMethod = Literal[
    "official", "bilinear", "bilinear_antialias", "bicubic", "bicubic_antialias"
]  # posemb.WEIGHTS has them, too

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
    distill_head: bool = field(True, "the second token has a head; only with distill_token")
    registers: int = field(
        0, "learned tokens without a position, before the patches, that no head reads", least=0, mixer=0
    )
    patch_bias: bool = field(True, "bias of the patch embedding; CLIP has none")
    embed_norm: bool = field(False, "LayerNorm of all tokens before the first block, as in CLIP", mixer=False)
    posemb: Literal["learned", "sincos2d", "none"] = field("learned", "position embedding", mixer="none")
    posemb_class_slot: bool = field(
        True, "learned positions cover the class token too, as in official files", in_file=False
    )
    posemb_method: PosembMethod = field(
        "official",
        "how learned positions are resized to other images' grids; official: align-corners bilinear",
        mixer="official",
        **TRAINING,
    )
    rotary: Literal["none", "dinov3", "eva02", "pe", "rope_vit"] = field(
        "none", "rotation of queries and keys by the position of a patch, as in the named model", mixer="none"
    )
    rotary_grid: int = field(
        0, "side of the grid that rotary positions are stretched to; 0: counted in patches", least=0, mixer=0
    )
    relative_bias: bool = field(
        False,
        "a learned bias of each head's scores by where a key lies from a query, as in BEiT",
        mixer=False,
    )
    pooling: Literal["token", "gap", "map", "token_gap"] = field(
        "token", "class token, mean of patches, attention, or the first two in a row", mixer="gap"
    )
    pool_heads: int = field(0, "heads of attention pooling; 0: those of a block", least=0, mixer=0)
    pool_mlp_width: int = field(
        0, "hidden features of attention pooling's MLP; 0: those of a block", least=0, mixer=0
    )
    final_norm: Literal["tokens", "pooled", "none"] = field(
        "tokens", "where the last LayerNorm is: on tokens, or on what pooling gives", mixer="tokens"
    )
    pre_logits: int = field(
        0, "features of a Dense + tanh before the head; 0: none", least=0, mixer=0, may_differ=True
    )
    pre_logits_form: Literal["tanh", "linear"] = field(
        "tanh", "tanh(x W + a), or x W, the projection of CLIP", mixer="tanh"
    )
    branch_norm: Literal["before", "after"] = field(
        "before", "LayerNorm of what a branch takes, or of what it gives", mixer="before"
    )
    qkv_bias: Literal["all", "query_value", "none"] = field(
        "all", "which of a block's queries, keys and values have a bias", mixer="all"
    )
    attention_norm: bool = field(False, "LayerNorm of the heads' values before they are mixed", mixer=False)
    mlp_norm: bool = field(False, "LayerNorm of an MLP's hidden features", mixer=False)
    qk_norm: bool = field(False, "LayerNorm of each head's queries and keys", mixer=False)
    layer_scale: float = field(
        0.0, "initial value of a learned scale on each branch; 0: none", least=0, mixer=0.0, **TRAINING
    )
    dropout: float = rate("dropout rate after the embedding, the attention and both MLP layers", **TRAINING)
    stochastic_depth: float = rate("drop rate of the last block, growing linearly from 0", **TRAINING)
    gelu: Literal["tanh", "exact", "quick"] = field(
        "tanh", "GELU form; the official files use tanh, OpenAI's CLIP x sigmoid(1.702 x)"
    )
    norm_eps: float = field(1e-6, "epsilon of every LayerNorm", least=0)
    stem_eps: Literal["official", "timm"] = field(
        "official",
        "epsilons of the stem: 1e-5 beside a kernel's deviation and 1e-6 in GroupNorm, or timm's, 1e-8 "
        "beside its variance and 1e-5",
        mixer="official",
    )
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

    @property
    def features(self) -> int:
        """How many features the head sees."""
        return self.pre_logits or self.width * (2 if self.pooling == "token_gap" else 1)

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.distill_token + self.registers

    @property
    def heads_distill(self) -> bool:
        """Whether there are two heads."""
        return self.distill_token and self.distill_head

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
        if self.width % (self.pool_heads or 1):
            fail(f"model.pool_heads={self.pool_heads} does not divide model.width={self.width}: use 0")
        if self.rotary != "none" and self.width // self.heads % 4:
            fail(
                f"model.width/heads={self.width}/{self.heads} is not a multiple of 4, which "
                f"model.rotary={self.rotary} needs"
            )
        if self.rotary_grid and self.rotary not in ("eva02", "pe"):
            fail(f"model.rotary_grid={self.rotary_grid} needs model.rotary=eva02 or pe: set it to 0")
        if self.posemb == "sincos2d" and self.width % 4:
            fail(f"model.width={self.width} is not a multiple of 4, which model.posemb=sincos2d needs")
        if self.stem_width % 32:
            fail(f"model.stem_width={self.stem_width} is not a multiple of the 32 norm groups: use 64, or 0")
        if self.stem_blocks and not self.stem_width:
            fail(f"model.stem_blocks={self.stem_blocks} needs model.stem_width above 0")

    def _check_tokens(self) -> None:
        if self.pooling in ("token", "token_gap") and not self.class_token:
            needs = "needs model.class_token=True: set it, or use pooling=gap or map"
            fail(f"model.pooling={self.pooling} {needs}")
        if self.relative_bias and not (self.class_token and self.prefix == 1):
            fail("model.relative_bias=True is for a class token and patches alone: set no other tokens")
        if self.pooling != "map" and (self.pool_heads or self.pool_mlp_width):
            fail("model.pool_heads and model.pool_mlp_width need model.pooling=map: set them to 0")
        if self.pre_logits_form != "tanh" and not self.pre_logits:
            fail(f"model.pre_logits_form={self.pre_logits_form} needs model.pre_logits above 0")
        if not (self.distill_token or self.distill_head):
            fail("model.distill_head=False needs model.distill_token=True")
        if self.distill_token and self.final_norm != "tokens":
            fail("model.distill_token=True needs model.final_norm=tokens, which both heads read")
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
NOT_IN_FILES = {name for name, in_file in with_role(Model, "in_file").items() if not in_file}
MAY_DIFFER = {name for name, may_differ in with_role(Model, "may_differ").items() if may_differ}
