"""`vit_jax.load`, what it returns (a model and all that is needed to use it), and `vit_jax.save`."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax.analysis import calibration, features
from vit_jax.analysis.calibration import UNFITTED, Calibration
from vit_jax.data import transforms
from vit_jax.data.loader import put, rows_of
from vit_jax.data.source import class_name
from vit_jax.errors import UserError
from vit_jax.fields import at_least
from vit_jax.models import build
from vit_jax.sections import Data, Spec, seen_size
from vit_jax.training.step import normalise
from vit_jax.weights.adapt import Wish
from vit_jax.weights.load import read
from vit_jax.weights.report import Report
from vit_jax.weights.save import write

TOP = 5  # classes per image
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

    A model without a head, of `spec.model.classes=0`, has features alone, and raises UserError for the rest.
    `data` is what the model was trained on, ImageNet for published files; `report` says what became of each
    array. `calibration` is what `evaluate --calibrate` fitted on these parameters, if it was run: temperature
    and thresholds of all confidences here.
    """

    model: nn.Module
    params: Any
    spec: Spec
    data: Data
    report: Report
    calibration: Calibration | None = None

    def classify(self, images: Iterable[Image.Image], top: int | None = None) -> list[list[Prediction]]:
        """The `top` (5) classes of each image, the likeliest first. Preprocesses as in evaluation.

        Of a model of several classes per image, without `top`: those above their thresholds, maybe none.
        Raises UserError for what is no image, and for a `top` below 1.
        """
        if top is not None:
            at_least("top", top, 1)
        rows = self.probabilities(images)
        if top is None and self.spec.multi_label:
            return [self.above(row) for row in rows]
        return [self.best(row, TOP if top is None else top) for row in rows]

    @property
    def temperature(self) -> float:
        """What divides logits before they are confidences."""
        return self.calibration.temperature if self.calibration else 1.0

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The confidence from which on each class is predicted, where an image may be of several."""
        fitted = self.calibration.thresholds if self.calibration else ()
        return fitted or (UNFITTED,) * self.spec.model.classes

    def above(self, probability_c: np.ndarray) -> list[Prediction]:
        """The classes of one image's probabilities that reach their thresholds, the likeliest first."""
        count = len(probability_c)
        reached = set(np.flatnonzero(probability_c >= np.asarray(self.thresholds)).tolist())
        return [found for found in self.best(probability_c, count) if found.index in reached]

    def probabilities(self, images: Iterable[Image.Image]) -> np.ndarray:
        """float32 [images, classes], softmax or a sigmoid of each class, of logits over the temperature.

        Raises UserError for what is no image, and for a model without a head.
        """
        self.need_head()
        t = jnp.float32(self.temperature)
        return self._forward(images, lambda x: _probabilities(self.model, self.spec, self.params, x, t))

    def features(
        self, images: Iterable[Image.Image], *, layer: int = -1, pool: features.Pooling = "model"
    ) -> np.ndarray:
        """float32 [images, features] after a block, -1 for the last, under the model's final norm.

        `pool` is the model's own way (what its head sees), its class token, the mean of patches, or none:
        [images, tokens, width], of class and distillation token, registers and patches as the model has them.
        Raises UserError for what is no image, and for a layer or a token that the model lacks.
        """
        column = features.pick(self.spec.model, layer=layer, pool=pool)
        return self._forward(images, lambda x: _features(self.spec, column, self.params, x))

    def need_head(self) -> None:
        """Raises UserError for a model without a head."""
        if not self.spec.model.classes:
            ref = self.report.source
            headless = f"{ref} has no head, so it names no class"
            raise UserError(
                f"{headless}: load it with classes= to make one, or ask for its features",
                command=f"{headless}: fine-tune it (train --config.init={ref}), or use its features (embed, "
                "probe)",
            )

    def _forward(self, images: Iterable[Image.Image], run: Callable[[Any], jax.Array]) -> np.ndarray:
        """What `run` gives for uint8 images [b, h, w, c] or Patches, a row each, in batches of few sizes."""
        seen, size = self.spec.preprocess, seen_size(self.spec.model, self.spec.preprocess)
        images_hwc = [transforms.for_evaluation(image, seen, size) for image in _checked(images)]
        if not images_hwc:
            like = jax.eval_shape(run, rows_of(size, 1, seen.channels))
            return np.zeros((0, *like.shape[1:]), like.dtype)
        made = []
        for chunk in _chunks(images_hwc):
            rows = rows_of(size, next(size for size in SIZES if size >= len(chunk)), seen.channels)
            for i, image_hwc in enumerate(chunk):
                put(rows, i, image_hwc)
            made.append(np.asarray(run(rows))[: len(chunk)])
        return np.concatenate(made)

    def best(self, probability_c: np.ndarray, top: int) -> list[Prediction]:
        """The `top` classes of one image's probabilities, the likeliest first."""
        best = np.argsort(-probability_c, kind="stable")[:top]
        return [Prediction(self.class_name(int(i)), int(i), float(probability_c[i])) for i in best]

    def class_name(self, index: int) -> str:
        """The name of a class, or its number where names are unknown."""
        return class_name(self.spec.class_names, index)


def load(
    ref: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    classes: int | None = None,
    heads: int | None = None,
) -> Loaded:
    """The model of a run directory (its best step if it has one), one step, a file, a folder of transformers
    or timm, an address or a name.

    `image_size` resizes the position embedding, `patch_size` that of patches, too (arXiv:2212.08013),
    `classes` replaces a head of another class count, or makes one, `heads` is for torch files that do not
    tell them. The report of what was done goes to stderr, too. Raises UserError.
    """
    weights = read(ref, Wish(image_size=image_size, patch_size=patch_size, classes=classes, heads=heads))
    print(weights.report, file=sys.stderr)
    as_stored = image_size is None and patch_size is None and classes is None
    found = calibration.load(ref, weights.params) if as_stored else None
    spec = Spec(
        model=weights.model,
        preprocess=weights.preprocess,
        class_names=weights.class_names,
        loss=weights.loss,
        multi_label=weights.multi_label or bool(found and found.thresholds),
    )
    used = dataclasses.asdict(weights.preprocess)
    data = (
        dataclasses.replace(weights.config.data, **used)
        if weights.config
        else Data(name="imagenet2012", **used)
    )
    params = jax.tree.map(jnp.asarray, weights.params)
    return Loaded(build.build(weights.model), params, spec, data, weights.report, found)


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


def _chunks(rows: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(rows), SIZES[-1]):
        yield rows[start : start + SIZES[-1]]


@jax.jit(static_argnums=(0, 1))
def _probabilities(
    model: nn.Module, spec: Spec, params: Any, image: Any, temperature: jax.Array
) -> jax.Array:
    logits_bc: Any = model.apply({"params": params}, normalise(image, spec.preprocess))
    of_loss = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}[spec.loss]
    return of_loss(logits_bc / temperature)


@jax.jit(static_argnums=(0, 1))
def _features(spec: Spec, column: features.Column, params: Any, image: Any) -> jax.Array:
    return features.extract(spec.model, params, normalise(image, spec.preprocess), (column,))[column]
