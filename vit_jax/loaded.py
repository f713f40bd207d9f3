"""`vit_jax.load`, what it returns (a model and all that is needed to use it), and `vit_jax.save`."""

import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax.data import transforms
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.sections import Data, Spec
from vit_jax.training.step import normalise
from vit_jax.weights.adapt import Wish, reset_head
from vit_jax.weights.load import read
from vit_jax.weights.report import Report
from vit_jax.weights.save import write

SIZES = (1, 8, 64)  # of batches: few compiled programs, little padding, and a bound of memory


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One class of one image; `confidence` is its probability by the loss that the model was trained on."""

    name: str
    index: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class Loaded:
    """`model.apply({"params": params}, images)` gives logits; `images` as `spec.preprocess` makes them.

    `data` is what the model was trained on, ImageNet for published files; `report` says what became of each
    array.
    """

    model: nn.Module
    params: Any
    spec: Spec
    data: Data
    report: Report

    def classify(self, images: Iterable[Image.Image], top: int = 5) -> list[list[Prediction]]:
        """The `top` classes of each image, the likeliest first. Preprocesses as in evaluation.

        Raises UserError for what is no image, and for a `top` below 1.
        """
        if top < 1:
            raise UserError(f"top={top} must be at least 1")
        return [self.best(row, top) for row in self.probabilities(images)]

    def probabilities(self, images: Iterable[Image.Image], *, temperature: float = 1.0) -> np.ndarray:
        """float32 [images, classes] of logits over `temperature`: softmax, or a sigmoid of each class.

        Raises UserError for what is no image.
        """
        images = list(_checked(images))
        rows = [transforms.for_evaluation(i, self.spec.preprocess, self.spec.model.image_hw) for i in images]
        if not rows:
            return np.zeros((0, self.spec.model.classes), np.float32)
        return np.concatenate([self._forward(chunk, temperature) for chunk in _chunks(np.stack(rows))])

    def _forward(self, image_bhwc: np.ndarray, temperature: float) -> np.ndarray:
        missing = next(size for size in SIZES if size >= len(image_bhwc)) - len(image_bhwc)
        padded = np.pad(image_bhwc, ((0, missing), (0, 0), (0, 0), (0, 0)))
        made = _probabilities(self.model, self.spec, self.params, padded, jnp.float32(temperature))
        return np.asarray(made)[: len(image_bhwc)]

    def best(self, probability_c: np.ndarray, top: int) -> list[Prediction]:
        """The `top` classes of one image's probabilities, the likeliest first."""
        best = np.argsort(-probability_c, kind="stable")[:top]
        return [Prediction(self.class_name(int(i)), int(i), float(probability_c[i])) for i in best]

    def class_name(self, index: int) -> str:
        """The name of a class, or its number where names are unknown."""
        names = self.spec.class_names
        return names[index] if index < len(names) else str(index)


def load(
    ref: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    classes: int | None = None,
    heads: int | None = None,
    headless: bool = False,
) -> Loaded:
    """The model of a run directory (its best step if it has one), one step, a file, a folder of transformers
    or timm, an address or a name.

    `image_size` resizes the position embedding, `classes` replaces a head of another class count, `heads` is
    for torch files that do not tell them. With `headless`, for uses that look at features alone, a file
    without a head gets a zero one of one class. The report of what was done goes to stderr, too.
    Raises UserError.
    """
    weights = read(ref, Wish(image_size=image_size, classes=classes, heads=heads, headless=headless))
    if not weights.model.classes:
        weights = reset_head(weights, 1)
    print(weights.report, file=sys.stderr)
    spec = Spec(
        model=weights.model,
        preprocess=weights.preprocess,
        class_names=weights.class_names,
        loss=weights.loss,
    )
    used = dataclasses.asdict(weights.preprocess)
    data = (
        dataclasses.replace(weights.config.data, **used)
        if weights.config
        else Data(name="imagenet2012", **used)
    )
    params = jax.tree.map(jnp.asarray, weights.params)
    return Loaded(build.build(weights.model), params, spec, data, weights.report)


def save(
    path: str | os.PathLike[str],
    loaded: Loaded,
    *,
    dialect: str,
    numerics: Literal["same", "theirs"] = "same",
) -> None:
    """Write the parameters as another code base reads them: .npz, .safetensors, or a transformers folder.

    Raises UserError if the dialect cannot hold the model; `numerics="theirs"` lets readers compute with
    another GELU or epsilon.
    """
    spec = loaded.spec
    beside = {"preprocess": spec.preprocess, "class_names": spec.class_names, "loss": spec.loss}
    write(path, loaded.params, spec.model, dialect=dialect, numerics=numerics, **beside)


def _checked(images: Iterable[Image.Image]) -> Iterator[Image.Image]:
    if isinstance(images, Image.Image | str | Path):
        raise UserError("images are given in a list: [image]")
    for i, image in enumerate(images):
        if not isinstance(image, Image.Image) and getattr(image, "dtype", None) != np.uint8:
            raise UserError(f"images[{i}] is {type(image).__name__}: want a PIL image or a uint8 array")
        yield image


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), SIZES[-1]):
        yield rows[start : start + SIZES[-1]]


@jax.jit(static_argnums=(0, 1))
def _probabilities(
    model: nn.Module, spec: Spec, params: Any, image_bhwc: jax.Array, temperature: jax.Array
) -> jax.Array:
    logits_bc: Any = model.apply({"params": params}, normalise(image_bhwc, spec.preprocess))
    of_loss = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}[spec.loss]
    return of_loss(logits_bc / temperature)
