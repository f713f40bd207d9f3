"""`vit_jax.load` and what it returns: a model with its parameters and all that is needed to use it."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from vit_jax.config import Data, Spec, parse, parse_spec
from vit_jax.data import transforms
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.training import checkpoint
from vit_jax.training.step import normalise

BATCH_SIZE = 64  # of `classify`: bounds memory, and lets all calls share one compiled program


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One class of one image; `confidence` is the softmax probability."""

    name: str
    index: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class Loaded:
    """`model.apply({"params": params}, images)` gives logits; `images` as `spec.preprocess` makes them.

    `data` is what the model was trained on, `report` says where it came from.
    """

    model: nn.Module
    params: Any
    spec: Spec
    data: Data
    report: str

    def classify(self, images: Iterable[Image.Image], top: int = 5) -> list[list[Prediction]]:
        """The `top` classes of each image, the likeliest first. Preprocesses as in evaluation."""
        images = list(images)
        return [self._top(row, top) for row in self.probabilities(images)]

    def probabilities(self, images: Iterable[Image.Image]) -> np.ndarray:
        """Softmax probabilities, float32 [images, classes]."""
        rows = [transforms.for_evaluation(i, self.spec.preprocess, self.spec.model.image_hw) for i in images]
        if not rows:
            return np.zeros((0, self.spec.model.classes), np.float32)
        return np.concatenate([self._forward(chunk) for chunk in _chunks(np.stack(rows))])

    def _forward(self, image_bhwc: np.ndarray) -> np.ndarray:
        missing = BATCH_SIZE - len(image_bhwc)
        padded = np.pad(image_bhwc, ((0, missing), (0, 0), (0, 0), (0, 0)))
        return np.asarray(_probabilities(self.model, self.spec, self.params, padded))[: len(image_bhwc)]

    def _top(self, probability_c: np.ndarray, top: int) -> list[Prediction]:
        best = np.argsort(-probability_c, kind="stable")[:top]
        return [Prediction(self.class_name(int(i)), int(i), float(probability_c[i])) for i in best]

    def class_name(self, index: int) -> str:
        """The name of a class, or its number where names are unknown."""
        names = self.spec.class_names
        return names[index] if index < len(names) else str(index)


def load(ref: str | Path) -> Loaded:
    """The model of a run directory (its best step if it has one) or of one step of it. Raises UserError."""
    step_dir = _step_dir(Path(ref))
    spec = parse_spec(checkpoint.read_record(step_dir)["spec"])
    model = build.build(spec.model)
    record, trees = checkpoint.read(step_dir, params=_abstract_params(model, spec))
    report = f"{step_dir}: step {record['step']}, {build.count(trees['params']):,} parameters"
    return Loaded(model, trees["params"], spec, parse(record["config"]).data, report)


def _step_dir(ref: Path) -> Path:
    if (ref / checkpoint.PARAMS).is_dir():
        return ref
    for folder in (ref / "best", ref / "checkpoints", ref):
        steps = checkpoint.steps_in(folder)
        if steps:
            return folder / str(steps[-1])
    raise UserError(f"{ref} is neither a run directory with a checkpoint nor one step of it")


def _abstract_params(model: nn.Module, spec: Spec) -> Any:
    shapes = jax.eval_shape(
        lambda: build.init(
            model, jax.random.key(0), image_hw=spec.model.image_hw, channels=spec.preprocess.channels
        )
    )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BATCH_SIZE):
        yield rows[start : start + BATCH_SIZE]


@jax.jit(static_argnums=(0, 1))
def _probabilities(model: nn.Module, spec: Spec, params: Any, image_bhwc: jax.Array) -> jax.Array:
    logits_bc: Any = model.apply({"params": params}, normalise(image_bhwc, spec.preprocess))
    return jax.nn.softmax(logits_bc)
