"""Every configuration field with type, default, meaning, bounds and roles: one frozen dataclass a section.

Imports neither jax nor flax. `__post_init__` checks bounds, then what must hold between fields.
"""

import dataclasses
from typing import Any, Literal

from vit_jax.fields import at_least, check, fail, field, rate, section, share, with_role

LossName = Literal["softmax", "sigmoid"]
# Roles of a field that says how a model is trained or used, not what it is.
TRAINING: Any = {"in_file": False, "may_differ": True}
ALIKE, NO_TEACHER = "1 trains all layers alike", "unset loss.teacher for none"


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a decoded image becomes the model's input outside training: saved in every checkpoint."""

    channels: int = field(3, "1: grey, 3: RGB, 4: RGBA; arrays may have any number", least=1)
    resize: Literal["squash", "crop", "squash_crop"] = field(
        "squash", "to the exact size; short side then centre crop; a square of the same, then centre crop"
    )
    crop_fraction: float = share(0.875, "image size over the size before a centre crop")
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
    std: tuple[float, ...] = field((0.5,), "divides pixels after mean: as many values", above=0)

    def __post_init__(self) -> None:
        check(self, "data")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                value = getattr(self, name)
                fail(f"data.{name}={value} has neither 1 nor data.channels={self.channels} values")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Preprocess):
    """Where images come from and what training does to them on the host."""

    name: str = field("digits", "digits, folder, parquet, cifar, or the name of a prepared TFDS data set")
    dir: str = field("", "folder of class folders, of parquet or CIFAR files, or TFDS data; also gs://")
    stage_dir: str = field("", "where a TFDS data set of gs:// is copied to; empty: in the user's cache")
    train_split: str = field("train", "split to train on, e.g. train[:98%]")
    eval_split: str = field("", "split to evaluate on; empty: validation, val or test, whichever exists")
    held_out: Literal["by_class", "by_file"] = field(
        "by_class", "of a folder without splits: a tenth of each class, or each file by its name alone"
    )
    on_error: Literal["error", "skip"] = field("error", "unreadable example: stop, or weigh it 0 and log it")
    augment: Literal["none", "pad", "inception"] = field(
        "inception", "training crop: none (as evaluation), shift by up to pad_px, or random area and aspect"
    )
    pad_px: int = field(4, "largest shift of augment=pad, in pixels", least=0)
    min_area: float = share(0.05, "smallest share of the image in an inception crop")
    flip: bool = field(True, "flip left-right at random in training")
    policy: Literal["none", "randaug", "three"] = field(
        "none", "none, big_vision's RandAugment, or 3-Augment"
    )
    randaug_layers: int = field(2, "operations on an image with policy=randaug", least=1)
    randaug_magnitude: int = field(10, "strength of policy=randaug; its authors' scale ends at 10", least=1)
    jitter: float = field(0.0, "largest change of brightness, contrast, saturation; 0: none", least=0)
    erase: float = field(0.0, "chance that a random rectangle is replaced by noise", least=0, most=1)
    repeats: int = field(1, "repeated augmentation: copies of an example, one after another", least=1)
    workers: int = field(0, "loader processes; 0: threads of this process only", least=0)
    threads: int = field(8, "loader threads, each a batch ahead; 0: in the training thread", least=0)
    cache_gib: float = field(0.0, "memory for a split's crops, or undecoded JPEGs; 0: none", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
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
    """Optimizer, learning-rate schedule, and which parameters they change.

    Patterns are regular expressions, searched in parameter names such as block_0/mlp/up/kernel.
    """

    name: Literal["adamw", "sgd", "adafactor", "lion", "lamb", "muon"] = field(
        "adamw", "rule; adafactor as in big_vision; muon is for the blocks' kernels, with adamw for the rest"
    )
    lr: float = field(1e-3, "peak learning rate", above=0)
    schedule: Literal["cosine", "linear", "rsqrt", "constant"] = field("cosine", "decay after warm-up")
    warmup_steps: int | float = field(0, "steps of linear warm-up; below 1: this share of the run", least=0)
    cooldown_steps: int | float = field(0, "last steps, or share, in which the rate falls to 0 too", least=0)
    timescale_steps: int = field(10_000, "schedule=rsqrt: lr * sqrt(this / (step - warm-up + this))", least=1)
    momentum: float = rate("SGD, Adafactor, Muon: decay of the momentum", 0.9)
    momentum_dtype: Literal["float32", "bfloat16"] = field("float32", "dtype of momentum")
    beta1: float = rate("AdamW, Lion, LAMB: decay of the gradient mean", 0.9)
    beta2: float = rate("decay of the squared mean, with Lion of the mean; Adafactor: its cap", 0.999)
    eps: float = field(1e-8, "AdamW, LAMB: added to the root of the squared mean", least=0)
    weight_decay: float = field(0.0, "decoupled, times the learning rate", least=0)
    decayed: tuple[str, ...] = field(("kernel$",), "parameters that weight decay applies to", pattern=True)
    layer_decay: float = share(1.0, "learning rate of a layer over that of the layer above it", hint=ALIKE)
    trained: tuple[str, ...] = field((), "parameters to train, e.g. ^head or bias$; empty: all", pattern=True)
    frozen: tuple[str, ...] = field((), "parameters to leave as they are", pattern=True)
    clip_norm: float = field(0.0, "largest global gradient norm; 0: no clipping", least=0)
    sam_rho: float = field(0.0, "radius of sharpness-aware minimisation (two gradients a step)", least=0)
    ema: float = rate("decay of a running mean of the parameters, evaluated too; 0: none")

    def __post_init__(self) -> None:
        check(self, "optim")
        for name in ("warmup_steps", "cooldown_steps"):
            if (value := getattr(self, name)) >= 1 and value != int(value):
                fail(
                    f"optim.{name}={value} is neither a whole number of steps nor a share of the run below 1"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """What training minimises, and how it mixes the images of a batch on the devices."""

    name: LossName = field("softmax", "cross-entropy, or one binary one a class, summed")
    label_smoothing: float = rate("share of a label spread over all classes")
    mixup: float = field(0.0, "alpha of the Beta distribution that mixes two images; 0: none", least=0)
    cutmix: float = field(0.0, "alpha of the area cut from another image; with mixup: in turns", least=0)
    teacher: str = field("", "distillation teacher: run, file, address or published name; empty: none")
    distill: Literal["hard", "soft"] = field("hard", "towards the teacher's best class, or its probabilities")
    distill_weight: float = share(0.5, "share of the distillation loss in the whole", hint=NO_TEACHER)
    temperature: float = field(1.0, "distill=soft: divides both logits", above=0)

    def __post_init__(self) -> None:
        check(self, "loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Length of the run and how often it evaluates, saves and reports."""

    steps: int = field(0, "optimizer steps; 0: given by epochs", least=0)
    epochs: float = field(0.0, "passes over the training split; 0: given by steps", least=0)
    batch_size: int = field(128, "examples a step, over all devices and hosts", least=1)
    eval_batch_size: int = field(0, "examples an evaluation batch; 0: as batch_size", least=0)
    eval_every: int = field(0, "steps between evaluations; 0: only at the end", least=0)
    checkpoint_every: int = field(1000, "steps between checkpoints; the last step is always saved", least=1)
    keep: int = field(2, "newest checkpoints kept; the best is kept apart", least=1)
    log_every: int = field(50, "steps between log lines and metrics", least=1)
    stall_minutes: float = field(30.0, "end all processes if one makes no progress; 0: never", least=0)
    max_skipped: int = field(0, "steps that are not finite to skip before the run stops", least=0)
    spike: float = field(0.0, "skip steps whose loss is above this many times the usual; 0: none", least=0)
    micro_batches: int = field(1, "parts of a batch, computed one after another to save memory", least=1)
    scan: bool = field(False, "train one compiled block over all layers: quick to compile at any depth")
    remat: Literal["none", "full", "dots"] = field(
        "none", "what training computes twice to save memory: nothing, blocks, blocks but for weight products"
    )

    def __post_init__(self) -> None:
        check(self, "train")
        if bool(self.steps) == bool(self.epochs):
            fail(f"set one of train.steps={self.steps} and train.epochs={self.epochs} and leave the other 0")
        if self.spike and self.spike <= 1:
            fail(f"train.spike={self.spike} must be above 1, or 0 for no guard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    seed: int = field(0, "decides every random choice: parameters, order, augmentation, dropout", least=0)
    init: str = field("", "weights to start from: run, file, address or published name; empty: fresh")
    init_posemb: Literal["auto", "official", "bilinear", "bicubic", "bicubic_antialias"] = field(
        "auto",
        "how positions of init are resized; auto: as its family; official: align-corners bilinear",
    )
    device: Literal["any", "cpu", "gpu", "tpu"] = field("any", "what to run on; any: the fastest available")
    fsdp: int = field(1, "devices that split parameters and optimizer state", least=1)
    model: Model = section(Model)
    data: Data = section(Data)
    loss: Loss = section(Loss)
    optim: Optim = section(Optim)
    train: Train = section(Train)

    def __post_init__(self) -> None:
        check(self, "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """All that is needed to use a tree of parameters: saved beside them in every checkpoint."""

    model: Model = section(Model)
    preprocess: Preprocess = section(Preprocess)
    class_names: tuple[str, ...] = field((), "one name a class; empty: unknown")
    loss: LossName = field("softmax", "what turns logits into confidences")
