"""How a model is trained: the sections `optim`, `loss` and `train` of a config."""

import dataclasses
import re
from typing import Literal

from vit_jax.fields import check, fail, field, rate, share

LossName = Literal["softmax", "sigmoid"]
BestName = Literal["top1", "top5", "macro", "map", "loss"]  # training.evaluate.SIGN has them, too
SinkName = Literal["csv", "wandb", "mlflow"]
BALANCED = "balanced"  # of Loss.class_weights
ALIKE, NO_TEACHER = "1 trains all layers alike", "unset loss.teacher for none"


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
    trained: tuple[str, ...] = field(
        (), "parameters to train, e.g. ^head or bias$; empty: all, beside adapters ^head", pattern=True
    )
    frozen: tuple[str, ...] = field((), "parameters to leave as they are", pattern=True)
    lora_rank: int = field(
        0, "rank of adapters beside frozen kernels, trained with the head; 0: none", least=0
    )
    lora_alpha: float = field(16.0, "adapters are scaled by this over their rank", above=0)
    lora_kernels: tuple[str, ...] = field(("^block_",), "kernels that get an adapter", pattern=True)
    clip_norm: float = field(0.0, "largest global gradient norm; 0: no clipping", least=0)
    sam_rho: float = field(0.0, "radius of sharpness-aware minimisation (two gradients per step)", least=0)
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

    name: LossName = field("softmax", "cross-entropy, or one binary one per class, summed")
    class_weights: str | tuple[float, ...] = field(
        (), "balanced: examples / (classes * examples of a class); or a number per class; empty: all 1"
    )
    label_smoothing: float = rate("share of a label spread over all classes")
    mixup: float = field(0.0, "alpha of the Beta distribution that mixes two images; 0: none", least=0)
    cutmix: float = field(0.0, "alpha of the area cut from another image; with mixup: in turns", least=0)
    teacher: str = field(
        "", "distillation teacher: run, file, address, published name or org/name of the Hub; empty: none"
    )
    distill: Literal["hard", "soft"] = field("hard", "towards the teacher's best class, or its probabilities")
    distill_weight: float = share(0.5, "share of the distillation loss in the whole", hint=NO_TEACHER)
    temperature: float = field(1.0, "distill=soft: divides both logits", above=0)

    def __post_init__(self) -> None:
        check(self, "loss")
        weights = self.class_weights
        if isinstance(weights, str) and weights != BALANCED:
            fail(f"loss.class_weights={weights} is not {BALANCED}, and not one number per class")
        if not isinstance(weights, str) and any(w <= 0 for w in weights):
            fail(f"loss.class_weights={weights} must be above 0: leave out the images of a class instead")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Length of the run and how often it evaluates, saves and reports."""

    steps: int = field(0, "optimizer steps; 0: given by epochs", least=0)
    epochs: float = field(0.0, "passes over the training split; 0: given by steps", least=0)
    batch_size: int = field(128, "examples per step, over all devices and hosts", least=1)
    eval_batch_size: int = field(0, "examples per evaluation batch; 0: as batch_size", least=0)
    eval_every: int = field(0, "steps between evaluations; 0: only at the end", least=0)
    checkpoint_every: int = field(1000, "steps between checkpoints; the last step is always saved", least=1)
    best: BestName = field("top1", "metric of evaluations by which best/ is chosen; of loss the lowest")
    patience: int = field(0, "stop after so many evaluations without a better best; 0: never", least=0)
    keep: int = field(2, "newest checkpoints kept; the best is kept apart", least=1)
    log_every: int = field(50, "steps between log lines and metrics", least=1)
    sinks: tuple[SinkName, ...] = field((), "more places for metrics, of csv, wandb and mlflow, with commas")
    health: bool = field(False, "measure each block now and then, and say what is unusual and what helps")
    profile_steps: str = field("", "first and last step to profile, as 100-104, into tensorboard/")
    stall_minutes: float = field(30.0, "end all processes if one makes no progress; 0: never", least=0)
    max_skipped: int = field(0, "steps that are not finite to skip before the run stops", least=0)
    spike: float = field(0.0, "skip steps whose loss is above this many times the usual; 0: none", least=0)
    micro_batches: int = field(1, "parts of a batch, computed one after another to save memory", least=1)
    patch_sizes: tuple[int, ...] = field(
        (), "draw the patch size of each step from these, as FlexiViT; empty: that of the model", least=1
    )
    scan: bool = field(False, "train one compiled block over all layers: quick to compile at any depth")
    remat: Literal["none", "full", "dots"] = field(
        "none", "what training computes twice to save memory: nothing, blocks, blocks but for weight products"
    )

    def __post_init__(self) -> None:
        check(self, "train")
        if bool(self.steps) == bool(self.epochs):
            fail(f"set one of train.steps={self.steps} and train.epochs={self.epochs} and leave the other 0")
        if self.patience and not self.eval_every:
            fail(f"train.patience={self.patience} counts evaluations: set train.eval_every to have some")
        self.profiled()
        if self.spike and self.spike <= 1:
            fail(f"train.spike={self.spike} must be above 1, or 0 for no guard")

    def profiled(self) -> tuple[int, int] | None:
        """The first and the last step of `profile_steps`. Raises UserError for other text."""
        if not self.profile_steps:
            return None
        found = re.fullmatch(r"(\d+)-(\d+)", self.profile_steps)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            fail(f"train.profile_steps={self.profile_steps} is not a first and a last step, as 100-104")
        return int(found[1]), int(found[2])
