"""Whether data and teacher fit a config. Each check raises UserError before anything is made."""

from vit_jax.data.source import Source, Splits, want_one_class
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.sections import Config, Spec
from vit_jax.training.step import Teacher
from vit_jax.weights.adapt import Weights


def check_data(cfg: Config, data: Splits) -> None:
    """Raise UserError for data that teaches nothing, or that `cfg` has no loss or no classes for."""
    for split, source in data._asdict().items():
        if not source.size:
            raise UserError(f"the {split} split has no examples: give some")
    _want_classes(data.train)
    _want_sets(cfg, data)
    _want_room(cfg, data)


def teacher_of(cfg: Config, spec: Spec, weights: Weights) -> Teacher:
    """The teacher without its parameters. Raises UserError if its classes or channels are not the run's.

    Where both have names, the classes are to be in the same order.
    """
    pairs = {
        "classes": (weights.model.classes, spec.model.classes),
        "channels": (weights.preprocess.channels, spec.preprocess.channels),
    }
    if not weights.model.classes:
        raise UserError(f"loss.teacher={cfg.loss.teacher} has no head, so it teaches no class: give another")
    for name, (its, ours) in pairs.items():
        if its != ours:
            raise UserError(f"loss.teacher={cfg.loss.teacher} has {its} {name}, the run has {ours}")
    names = zip(weights.class_names, spec.class_names, strict=False)
    if set(weights.class_names) & set(spec.class_names) and (
        other := [pair for pair in names if len(set(pair)) > 1]
    ):
        raise UserError(
            f"loss.teacher={cfg.loss.teacher} has other classes than the run, or in another order, the first "
            f"{other[0][0]!r} for {other[0][1]!r}: train a teacher on this data"
        )
    return Teacher(build.build(weights.model), weights.preprocess)


def _want_classes(source: Source) -> None:
    """Raise UserError for data of one class, or of one label."""
    names, labels = source.class_names, source.labels()
    if labels is not None and source.multi_label and len(names) > 1:
        if len(labels) and (labels == labels[0]).all():
            raise UserError("the training data gives all images the same labels: there is nothing to learn")
        return
    if len(names) == 1 or (labels is not None and len(labels) and labels.min() == labels.max()):
        label = int(labels[0]) if labels is not None and labels.ndim == 1 else 0
        only = f" ({names[label]})" if names else ""
        raise UserError(
            f"the training data is of one class{only}: there is nothing to learn; give images of at least two"
        )


def _want_sets(cfg: Config, data: Splits) -> None:
    """Raise UserError for what does not go with several labels per image."""
    if data.train.multi_label != data.eval.multi_label:
        raise UserError("one split gives several labels per image and the other one: want the same of both")
    if not data.train.multi_label:
        return
    several, classes = "the data gives several labels per image", len(data.train.class_names)
    if cfg.loss.name != "sigmoid":
        raise UserError(f"{several}, loss.name={cfg.loss.name} learns one: set loss.name=sigmoid")
    for field, value in (("data.balance", cfg.data.balance), ("loss.class_weights", cfg.loss.class_weights)):
        if value in (True, "balanced"):
            want_one_class(data.train, field, value)
    if cfg.loss.teacher:
        raise UserError(f"{several}, loss.teacher={cfg.loss.teacher} teaches one: leave it out")
    if cfg.model.classes not in (0, classes):
        raise UserError(f"model.classes={cfg.model.classes} is not the {classes} of the data: leave it 0")
    if len(data.eval.class_names) != classes:
        raise UserError(
            f"the training split has {classes} classes, the evaluation split {len(data.eval.class_names)}: "
            "give splits of one data set"
        )


def _want_room(cfg: Config, data: Splits) -> None:
    """Raise UserError for a model of fewer classes than the data has: labels beyond them would be lost."""
    needed = max(len(data.train.class_names), len(data.eval.class_names))
    if 0 < cfg.model.classes < needed:
        raise UserError(
            f"model.classes={cfg.model.classes} is fewer than the {needed} of the data: leave it 0"
        )
