"""Where images come from and what becomes of them: the section `data` of a config."""

import dataclasses
from typing import Literal

from vit_jax.fields import check, fail, field, share


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a decoded image becomes the model's input outside training: saved in every checkpoint."""

    channels: int = field(3, "1: grey, 3: RGB, 4: RGBA; arrays may have any number", least=1)
    resize: Literal["squash", "crop", "squash_crop", "native"] = field(
        "squash",
        "to the exact size; short side then centre crop; a square of the same, then centre crop; or the "
        "aspect is kept, whole patches per side",
    )
    max_tokens: int = field(
        0, "resize=native: most patches per image; 0: as many as model.image_size has", least=0
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
    mean: tuple[float, ...] = field((0.5,), "subtracted from pixels in [0, 1]: one value, or one per channel")
    std: tuple[float, ...] = field((0.5,), "divides pixels after mean: as many values", above=0)

    def __post_init__(self) -> None:
        check(self, "data")
        if self.max_tokens and self.resize != "native":
            fail(f"data.max_tokens={self.max_tokens} is for data.resize=native: set it to 0")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                value = getattr(self, name)
                fail(f"data.{name}={value} has neither 1 nor data.channels={self.channels} values")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Preprocess):
    """Where images come from and what training does to them on the host."""

    name: str = field(
        "digits", "digits, folder, table, parquet, arrow, cifar, or the name of a prepared TFDS data set"
    )
    dir: str = field(
        "", "folder of class folders, tables, parquet, arrow or CIFAR files, or TFDS data; also gs://"
    )
    stage_dir: str = field("", "where a TFDS data set of gs:// is copied to; empty: in the user's cache")
    train_split: str = field("train", "split to train on, e.g. train[:98%]")
    eval_split: str = field("", "split to evaluate on; empty: validation, val or test, whichever exists")
    held_out: Literal["by_class", "by_file"] = field(
        "by_class", "of data without splits: a tenth of each class, or each file by its name alone"
    )
    on_error: Literal["error", "skip"] = field("error", "unreadable example: stop, or weigh it 0 and log it")
    balance: bool = field(False, "draw each class as often as any other: rare ones come again sooner")
    augment: Literal["none", "pad", "window", "inception"] = field(
        "inception",
        "training crop: none (as evaluation), shift by up to pad_px, a random window where evaluation takes "
        "the centre, or random area and aspect",
    )
    pad_px: int = field(4, "largest shift of augment=pad, in pixels", least=0)
    min_area: float = share(0.05, "smallest share of the image in an inception crop")
    flip: bool = field(True, "flip left-right at random in training")
    policy: Literal["none", "randaug", "three"] = field(
        "none", "none, big_vision's RandAugment, or 3-Augment"
    )
    randaug_layers: int = field(2, "operations on an image with policy=randaug", least=1)
    randaug_magnitude: int = field(10, "strength of policy=randaug; its authors' scale ends at 10", least=0)
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
        if self.augment == "window" and self.resize in ("squash", "native"):
            fail(
                f"data.augment=window has nothing to choose with data.resize={self.resize}: set "
                "data.resize=crop"
            )
        if self.name in ("folder", "table", "parquet", "arrow", "cifar") and not self.dir:
            fail(f"data.name={self.name} needs data.dir: the folder that holds its images")
