"""Every configuration field with its type, default, meaning and check: frozen dataclasses, one a section.

Imports neither jax nor flax.
"""

import dataclasses
from typing import Literal

from vit_jax.fields import at_least, fail, field, pattern, rate, section


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Architecture and numerics: all that is needed, with a class count, to build the module."""

    family: Literal["vit", "mixer"] = field("vit", "Vision Transformer, hybrids included, or MLP-Mixer")
    image_size: int | tuple[int, int] = field(224, "input pixels: a square's side, or (height, width)")
    patch_size: int = field(16, "side of a square patch, in pixels; after a stem, in its output's pixels")
    stem_width: int = field(0, "features of the ResNet stem's first convolution, 64 in hybrids; 0: no stem")
    stem_blocks: tuple[int, ...] = field((), "residual units of each stage of the stem; empty: only its root")
    width: int = field(192, "features a token")
    depth: int = field(12, "encoder blocks")
    heads: int = field(3, "attention heads a block")
    mlp_width: int = field(768, "hidden features of a block's MLP")
    mlp: Literal["gelu", "swiglu"] = field("gelu", "down(gelu(up x)), or down(silu(gate x) * up x)")
    token_width: int = field(0, "hidden features of the Mixer's MLP over tokens")
    classes: int = field(0, "output classes; 0: as many as the data set has")
    class_token: bool = field(True, "prepend a learned class token")
    distill_token: bool = field(False, "DeiT's second token and head; training returns both heads' logits")
    registers: int = field(0, "learned tokens without a position, before the patches, that no head reads")
    posemb: Literal["learned", "sincos2d", "none"] = field("learned", "position embedding")
    posemb_class_slot: bool = field(True, "learned positions cover the class token too, as in official files")
    pooling: Literal["token", "gap", "map"] = field("token", "class token, mean of patches, or attention")
    pre_logits: int = field(0, "features of a Dense + tanh before the head; 0: none")
    qk_norm: bool = field(False, "LayerNorm of queries and keys, a head at a time")
    layer_scale: float = field(0.0, "initial value of a learned scale on each branch's output; 0: none")
    dropout: float = field(0.0, "dropout rate after the embedding, the attention and both MLP layers")
    stochastic_depth: float = field(0.0, "drop rate of the last block's branches, growing linearly from 0")
    gelu: Literal["tanh", "exact"] = field("tanh", "GELU form; the official files use tanh")
    norm_eps: float = field(1e-6, "epsilon of every LayerNorm")
    head_bias: float = field(0.0, "initial bias of the zero-initialised head")
    dtype: Literal["float32", "bfloat16"] = field("float32", "of matrix products; parameters stay float32")

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def stride(self) -> int:
        """Input pixels from one patch to the next: the patch size times what the stem shrinks by."""
        stem = 4 * 2 ** max(len(self.stem_blocks) - 1, 0) if self.stem_width else 1
        return self.patch_size * stem

    @property
    def grid_hw(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid."""
        h, w = self.image_hw
        return h // self.stride, w // self.stride

    def __post_init__(self) -> None:
        for name in ("patch_size", "width", "depth", "heads", "mlp_width"):
            at_least(f"model.{name}", getattr(self, name), 1)
        for name in ("stem_width", "token_width", "classes", "registers", "pre_logits", "layer_scale"):
            at_least(f"model.{name}", getattr(self, name), 0)
        for name in ("dropout", "stochastic_depth"):
            rate(f"model.{name}", getattr(self, name))
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
        if self.stem_blocks and (not self.stem_width or min(self.stem_blocks) < 1):
            fail(
                f"model.stem_blocks={self.stem_blocks} needs model.stem_width above 0 and units of at least 1"
            )

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


# What a Mixer has no choice of: it has neither attention nor extra tokens nor positions.
MIXER_ONLY = {
    "heads": 1,
    "stem_width": 0,
    "mlp": "gelu",
    "class_token": False,
    "distill_token": False,
    "registers": 0,
    "posemb": "none",
    "pooling": "gap",
    "pre_logits": 0,
    "qk_norm": False,
    "layer_scale": 0.0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From a decoded image to what the model sees when it is used: travels with every checkpoint."""

    channels: int = field(3, "1 converts images to grey, 3 to RGB, 4 to RGBA; arrays may have any number")
    resize: Literal["squash", "crop"] = field("squash", "to the exact size, or short side then centre crop")
    crop_fraction: float = field(0.875, "image size over short side, with resize=crop")
    filter: Literal["pil_bilinear", "pil_bicubic", "tf_bilinear"] = field(
        "pil_bilinear",
        "resize filter: Pillow's, or TensorFlow's without antialiasing as the official code has it",
    )
    resizer: Literal["exact", "close", "fast"] = field(
        "close",
        "exact: the filter's pixels bit for bit; close: within 0.3 grey levels on average, in half the time; "
        "fast: as close, but training crops are decoded and filtered coarsely, 2 grey levels away",
    )
    mean: tuple[float, ...] = field((0.5,), "subtracted from pixels in [0, 1]: one value, or one a channel")
    std: tuple[float, ...] = field((0.5,), "divides pixels after mean: one value, or one a channel")

    def __post_init__(self) -> None:
        at_least("data.channels", self.channels, 1)
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                value = getattr(self, name)
                fail(f"data.{name}={value} has neither 1 nor data.channels={self.channels} values")
        if min(self.std) <= 0:
            fail(f"data.std={self.std} must be above 0")
        if not 0 < self.crop_fraction <= 1:
            fail(f"data.crop_fraction={self.crop_fraction} is not in (0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Preprocess):
    """Where images come from and what training does to them on the host."""

    name: str = field("digits", "digits, folder, parquet, cifar, or the name of a prepared TFDS data set")
    dir: str = field("", "folder of class folders, of parquet or CIFAR files, or TFDS data directory")
    train_split: str = field("train", "split to train on, e.g. train[:98%]")
    eval_split: str = field("", "split to evaluate on; empty: validation, val or test, whichever exists")
    on_error: Literal["error", "skip"] = field(
        "error", "unreadable example: stop, or give it weight 0 and log it"
    )
    augment: Literal["none", "pad", "inception"] = field(
        "inception", "training crop: none (as evaluation), shift by up to pad_px, or random area and aspect"
    )
    pad_px: int = field(4, "largest shift of augment=pad, in pixels")
    min_area: float = field(0.05, "smallest area of the inception crop, as a fraction of the image")
    flip: bool = field(True, "flip left-right at random in training")
    policy: Literal["none", "randaug", "three"] = field(
        "none", "none, RandAugment (big_vision's), or 3-Augment of DeiT III: grey, solarize or blur"
    )
    randaug_layers: int = field(2, "operations an image with policy=randaug")
    randaug_magnitude: int = field(10, "strength of policy=randaug; 10 is the top of the original scale")
    jitter: float = field(0.0, "brightness, contrast and saturation change by up to this factor; 0: none")
    erase: float = field(0.0, "how often a random rectangle is replaced by noise")
    repeats: int = field(1, "repeated augmentation: copies of an example, next to each other in the stream")
    workers: int = field(0, "loader processes; 0: threads of this process only")
    threads: int = field(8, "loader threads, each one whole batch ahead; 0: in the training thread")
    cache_gib: float = field(
        0.0, "keep up to this much of each split in memory: crops, or with random ones JPEG files and pixels"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_area <= 1:
            fail(f"data.min_area={self.min_area} is not in (0, 1]")
        if not 0 <= self.erase <= 1:
            fail(f"data.erase={self.erase} is not in [0, 1]")
        for name in ("pad_px", "jitter", "workers", "threads", "cache_gib"):
            at_least(f"data.{name}", getattr(self, name), 0)
        for name in ("repeats", "randaug_layers", "randaug_magnitude"):
            at_least(f"data.{name}", getattr(self, name), 1)
        if self.cache_gib and self.workers:
            fail(f"data.cache_gib={self.cache_gib} is for the threads of one process: set data.workers=0")
        if (self.policy != "none" or self.jitter) and self.channels not in (1, 3):
            fail(
                f"data.channels={self.channels} has no colours for data.policy or data.jitter: leave them off"
            )
        if self.name in ("folder", "parquet", "cifar") and not self.dir:
            fail(f"data.name={self.name} needs data.dir: the folder that holds its images")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimizer, learning-rate schedule, and which parameters they touch.

    Patterns are regular expressions, searched in parameter names such as block_0/mlp/up/kernel.
    """

    name: Literal["adamw", "sgd", "adafactor", "lion", "lamb", "muon"] = field(
        "adamw", "rule; adafactor as in big_vision; muon is for the blocks' kernels, with adamw for the rest"
    )
    lr: float = field(1e-3, "peak learning rate")
    schedule: Literal["cosine", "linear", "rsqrt", "constant"] = field("cosine", "decay after warm-up")
    warmup_steps: int = field(0, "steps of linear warm-up from 0")
    cooldown_steps: int = field(0, "last steps, in which the rate is also taken linearly to 0")
    timescale_steps: int = field(10_000, "schedule=rsqrt: lr * sqrt(this / (step - warm-up + this))")
    momentum: float = field(0.9, "SGD, Adafactor and Muon: decay of the momentum")
    momentum_dtype: Literal["float32", "bfloat16"] = field("float32", "of the momentum or gradient mean")
    beta1: float = field(0.9, "AdamW, Lion, LAMB: decay of the gradient mean")
    beta2: float = field(
        0.999, "AdamW, LAMB: decay of the squared mean; Adafactor: its cap; Lion: of the mean"
    )
    eps: float = field(1e-8, "AdamW, LAMB: added to the root of the squared mean")
    weight_decay: float = field(0.0, "decoupled, times the learning rate")
    decayed: tuple[str, ...] = field(("kernel$",), "patterns of parameters that weight decay applies to")
    layer_decay: float = field(1.0, "learning rate of a layer over that of the layer above it")
    trained: tuple[str, ...] = field((), "patterns of parameters to train, e.g. ^head or bias$; empty: all")
    frozen: tuple[str, ...] = field((), "patterns of parameters to leave as they are")
    clip_norm: float = field(0.0, "largest global gradient norm; 0: no clipping")
    sam_rho: float = field(0.0, "radius of sharpness-aware minimisation, two gradients a step; 0: none")
    ema: float = field(0.0, "decay of a running mean of the parameters, evaluated beside them; 0: none")

    def __post_init__(self) -> None:
        if self.lr <= 0:
            fail(f"optim.lr={self.lr} must be above 0")
        for name in ("warmup_steps", "cooldown_steps", "weight_decay", "clip_norm", "sam_rho"):
            at_least(f"optim.{name}", getattr(self, name), 0)
        at_least("optim.timescale_steps", self.timescale_steps, 1)
        for name in ("momentum", "beta1", "beta2", "ema"):
            rate(f"optim.{name}", getattr(self, name))
        if not 0 < self.layer_decay <= 1:
            fail(f"optim.layer_decay={self.layer_decay} is not in (0, 1]: 1 trains all layers alike")
        for name in ("decayed", "trained", "frozen"):
            pattern(f"optim.{name}", getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """What training minimises, and what it does to a batch on the devices before."""

    name: Literal["softmax", "sigmoid"] = field("softmax", "cross-entropy, or one binary one a class, summed")
    label_smoothing: float = field(0.0, "share of a label that is spread evenly over all classes")
    mixup: float = field(0.0, "alpha of the Beta distribution that mixes two images; 0: no mixup")
    cutmix: float = field(0.0, "alpha of the area cut from another image; 0: no CutMix; with mixup: in turns")
    teacher: str = field("", "distil from these weights: run, file, address or published name; empty: none")
    distill: Literal["hard", "soft"] = field("hard", "towards the teacher's best class, or its probabilities")
    distill_weight: float = field(0.5, "share of the distillation loss in the whole")
    temperature: float = field(1.0, "distill=soft: divides both logits")

    def __post_init__(self) -> None:
        rate("loss.label_smoothing", self.label_smoothing)
        for name in ("mixup", "cutmix"):
            at_least(f"loss.{name}", getattr(self, name), 0)
        if not 0 < self.distill_weight <= 1:
            fail(f"loss.distill_weight={self.distill_weight} is not in (0, 1]: unset loss.teacher for none")
        if self.temperature <= 0:
            fail(f"loss.temperature={self.temperature} must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Length of the run and how often it evaluates, saves and reports."""

    steps: int = field(0, "optimizer steps; 0: given by epochs")
    epochs: float = field(0.0, "passes over the training split; 0: given by steps")
    batch_size: int = field(128, "examples a step, over all devices and hosts")
    eval_batch_size: int = field(0, "examples an evaluation batch; 0: as batch_size")
    eval_every: int = field(0, "steps between evaluations; 0: only at the end")
    checkpoint_every: int = field(1000, "steps between checkpoints; the last step is always saved")
    keep: int = field(2, "newest checkpoints kept; the best is kept apart")
    log_every: int = field(50, "steps between log lines and metrics")
    max_skipped: int = field(
        0, "steps with a loss or gradients that are not finite to skip before the run stops"
    )
    spike: float = field(0.0, "also skip steps whose loss is above this many times the usual; 0: none")
    micro_batches: int = field(1, "parts that a batch is cut into, one after another, to save memory")
    scan: bool = field(False, "train one compiled block over all layers: quick to compile at any depth")
    remat: Literal["none", "full", "dots"] = field(
        "none", "what training computes twice to save memory: nothing, blocks, blocks but for weight products"
    )

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "eval_batch_size", "eval_every", "max_skipped"):
            at_least(f"train.{name}", getattr(self, name), 0)
        if bool(self.steps) == bool(self.epochs):
            fail(f"set one of train.steps={self.steps} and train.epochs={self.epochs} and leave the other 0")
        for name in ("batch_size", "checkpoint_every", "keep", "log_every", "micro_batches"):
            at_least(f"train.{name}", getattr(self, name), 1)
        if self.spike and self.spike <= 1:
            fail(f"train.spike={self.spike} must be above 1, or 0 for no guard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    seed: int = field(0, "of every random choice: parameters, order, augmentation, dropout")
    init: str = field("", "start from these weights: run, file, address or published name; empty: fresh")
    init_posemb: Literal["official", "bilinear", "bicubic", "bicubic_antialias"] = field(
        "official", "how positions of init are resized; official: align-corners bilinear"
    )
    device: Literal["any", "cpu", "gpu", "tpu"] = field("any", "what to run on; any: the best there is")
    fsdp: int = field(1, "devices that split parameters and optimizer state")
    model: Model = section(Model)
    data: Data = section(Data)
    loss: Loss = section(Loss)
    optim: Optim = section(Optim)
    train: Train = section(Train)

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        at_least("fsdp", self.fsdp, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What makes a tree of parameters usable: kept beside them in every checkpoint."""

    model: Model = section(Model)
    preprocess: Preprocess = section(Preprocess)
    class_names: tuple[str, ...] = field((), "one name a class; empty: unknown")
