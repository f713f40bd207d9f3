"""timm's own transforms and collation over JPEGs in memory, for `benchmarks/input.py`.

timm imports torchvision; where that is not installed, the few Pillow functions that these transforms call are
stood in for, as torchvision defines them for Pillow images. Only for measuring: vit_jax never imports torch.
"""

import enum
import importlib.machinery
import importlib.util
import io
import random
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image


def loader(jpegs: Sequence[bytes], *, train: bool, batch_size: int, workers: int) -> Any:
    """A torch DataLoader of uint8 batches [b, 3, 224, 224] as `timm.data.create_loader` builds it."""
    import torch

    stand_in_for_torchvision()
    from timm.data.loader import fast_collate
    from timm.data.transforms_factory import create_transform

    options: dict[str, Any] = dict(color_jitter=None, hflip=0.5) if train else dict(crop_pct=0.875)
    transform = create_transform(
        224, is_training=train, use_prefetcher=True, interpolation="bicubic", **options
    )
    dataset = JpegDataset(jpegs, transform)
    return torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, num_workers=workers, collate_fn=fast_collate, drop_last=train
    )


class JpegDataset:
    """(image, label) pairs as `timm.data.ImageDataset` makes them, from memory."""

    def __init__(self, jpegs: Sequence[bytes], transform: Callable[[Image.Image], Any]) -> None:
        self.jpegs, self.transform = jpegs, transform

    def __len__(self) -> int:
        return len(self.jpegs)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.open(io.BytesIO(self.jpegs[index]))
        image.load()
        return self.transform(image.convert("RGB")), 0


class Compose:
    """One after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class RandomHorizontalFlip:
    """Mirror with probability p."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < self.p else image


class Resize:
    """Short side to `size`."""

    def __init__(self, size: int, interpolation: Any = None) -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        w, h = image.size
        short, long = sorted((w, h))
        other = int(self.size * long / short)
        return image.resize(
            (self.size, other) if w <= h else (other, self.size), _resample(self.interpolation)
        )


class CenterCrop:
    """The middle square of `size`."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        self.h, self.w = (size, size) if isinstance(size, int) else size

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left = round((image.height - self.h) / 2.0), round((image.width - self.w) / 2.0)
        return image.crop((left, top, left + self.w, top + self.h))


def pil_to_tensor(image: Image.Image) -> Any:
    """uint8 [c, h, w]."""
    import torch

    return torch.as_tensor(np.array(image, copy=True)).permute((2, 0, 1))


class InterpolationMode(enum.Enum):
    """torchvision's names."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def resized_crop(
    image: Image.Image, top: int, left: int, height: int, width: int, size: Any, interpolation: Any = None
) -> Image.Image:
    """Crop, then resize."""
    h, w = (size, size) if isinstance(size, int) else size
    return image.crop((left, top, left + width, top + height)).resize((w, h), _resample(interpolation))


def _resample(interpolation: Any) -> Image.Resampling:
    return Image.Resampling[getattr(interpolation, "name", "BICUBIC")]


def stand_in_for_torchvision() -> None:
    """Unless it is installed: modules with what timm's transforms call, and empty classes for the rest."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision"):
        return

    def module(name: str, **contents: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(contents, __spec__=importlib.machinery.ModuleSpec(name, None), __path__=[])
        made.__dict__["__getattr__"] = lambda wanted: _empty_class(name, wanted)
        sys.modules[name] = made
        return made

    functional = module(
        "torchvision.transforms.functional",
        InterpolationMode=InterpolationMode,
        resized_crop=resized_crop,
        pil_to_tensor=pil_to_tensor,
        get_image_size=lambda image: image.size,
    )
    classes = (Compose, RandomHorizontalFlip, Resize, CenterCrop, InterpolationMode)
    transforms = module(
        "torchvision.transforms", functional=functional, **{kind.__name__: kind for kind in classes}
    )
    for name in ("datasets", "ops", "ops.misc", "models", "models.feature_extraction"):
        module(f"torchvision.{name}")
    module("torchvision", transforms=transforms, __version__="0")


def _empty_class(module: str, name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    made = type(name, (), {})
    setattr(sys.modules[module], name, made)
    return made
