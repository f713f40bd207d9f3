"""Every configuration field with type, default, meaning, bounds and roles: one frozen dataclass per section.

Imports neither jax nor flax. `__post_init__` checks bounds, then what must hold between fields.
"""

import dataclasses
from typing import Literal

from vit_jax.fields import check, fail, field, section
from vit_jax.patches import Native, Size
from vit_jax.sections.data import Data, Preprocess
from vit_jax.sections.model import MAY_DIFFER, MIXER_ONLY, NOT_IN_FILES, Model, PosembMethod
from vit_jax.sections.training import BALANCED, Loss, LossName, Optim, Train

__all__ = [
    "BALANCED",
    "MAY_DIFFER",
    "MIXER_ONLY",
    "NOT_IN_FILES",
    "Config",
    "Data",
    "Loss",
    "LossName",
    "Model",
    "Optim",
    "PosembMethod",
    "Preprocess",
    "Spec",
    "Train",
    "seen_size",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    seed: int = field(0, "decides every random choice: parameters, order, augmentation, dropout", least=0)
    init: str = field(
        "", "weights to start from: run, file, address, published name or org/name of the Hub; empty: fresh"
    )
    init_posemb: Literal["auto", PosembMethod] = field(
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
        if self.optim.lora_rank and not self.init:
            fail(
                f"optim.lora_rank={self.optim.lora_rank} trains adapters of weights that are there: set init"
            )
        self._check_patch_sizes()
        if self.data.resize == "native":
            self._check_native()
        if self.data.balance and self.loss.class_weights == BALANCED:
            fail("data.balance and loss.class_weights=balanced would make up for rare classes twice: use one")

    def _check_native(self) -> None:
        mixed = next((name for name in ("mixup", "cutmix") if getattr(self.loss, name)), "")
        whys = {
            "model.family=mixer, whose count of patches is fixed": self.model.family == "mixer",
            f"model.stem_width={self.model.stem_width}, whose stem takes whole images": self.model.stem_width,
            f"train.patch_sizes={self.train.patch_sizes}, as images are cut into patches of one size": (
                self.train.patch_sizes
            ),
            f"loss.{mixed}, which mixes images of one shape": mixed,
            f"loss.teacher={self.loss.teacher}, which would see the student's patches": self.loss.teacher,
            "train.health, which would measure padding": self.train.health,
        }
        for what, is_set in whys.items():
            if is_set:
                fail(f"data.resize=native does not go with {what}: use one of the two")

    def _check_patch_sizes(self) -> None:
        sizes, model = self.train.patch_sizes, self.model
        if sizes and model.family == "mixer":
            fail(f"train.patch_sizes={sizes} is not for model.family=mixer, whose count of patches is fixed")
        for size in sizes:
            stride = model.stride // model.patch_size * size
            if any(px % stride for px in model.image_hw):
                fail(
                    f"train.patch_sizes={sizes}: model.image_size={model.image_size} is not a multiple of "
                    f"{stride} pixels: leave {size} out, or choose another image size"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """All that is needed to use a tree of parameters: saved beside them in every checkpoint."""

    model: Model = section(Model)
    preprocess: Preprocess = section(Preprocess)
    class_names: tuple[str, ...] = field((), "one name per class; empty: unknown")
    loss: LossName = field("softmax", "what turns logits into confidences")
    multi_label: bool = field(False, "whether an image may be of several classes, or of none")


def seen_size(model: Model, preprocess: Preprocess) -> Size:
    """What size `model` sees images at: (height, width) in pixels, or Native where they keep their aspect."""
    if preprocess.resize != "native":
        return model.image_hw
    rows, columns = model.grid_hw
    return Native(model.patch_size, preprocess.max_tokens or rows * columns)
