"""Loaded weights at another resolution or for other classes."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from vit_jax.fields import at_least, fail
from vit_jax.models import flexi, posemb
from vit_jax.sections import Config, LossName, Model, Preprocess
from vit_jax.weights.report import Note, Report


class Weights(NamedTuple):
    """A model with its parameters and all that is needed to use them."""

    model: Model
    params: dict[str, Any]  # nested, under our names, float32
    class_names: tuple[str, ...]  # empty where unknown
    preprocess: Preprocess
    report: Report
    loss: LossName = "softmax"  # what turns logits into confidences
    config: Config | None = None  # that they were trained with, of a run of ours
    multi_label: bool = False  # whether they were trained on several classes per image


@dataclasses.dataclass(frozen=True)
class Wish:
    """How stored weights are wanted; without arguments, as they are. Raises UserError for what cannot be."""

    image_size: int | tuple[int, int] | None = None  # positions are resized for it
    patch_size: int | None = None  # the patch embedding is resized for it, and positions
    classes: int | None = None  # a head of another class count is replaced by zeros, or made where none is
    posemb_method: str | None = None  # None: as the model resizes positions
    keep_pre_logits: bool = True  # False: with `classes`, a hidden layer goes, and the head behind it
    heads: int | None = None  # for torch files of a width that does not tell them

    def __post_init__(self) -> None:
        if self.posemb_method is not None:
            posemb.check_method(self.posemb_method)
        if not isinstance(self.image_size, int | tuple | None):
            fail(f"image_size={self.image_size!r} is neither a number of pixels nor (height, width)")
        for name in ("image_size", "patch_size"):
            if (pixels := getattr(self, name)) is not None:
                at_least(name, pixels, 1)

    @property
    def image_hw(self) -> tuple[int, int] | None:
        """(height, width) in pixels, if a size is wanted."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


def to(weights: Weights, wish: Wish) -> Weights:
    """The weights as wanted. Raises UserError as `reset_head` and `resize` do."""
    dropped = bool(weights.model.pre_logits) and not wish.keep_pre_logits
    if wish.classes is not None and (wish.classes != weights.model.classes or dropped):
        weights = reset_head(weights, wish.classes, keep_pre_logits=wish.keep_pre_logits)
    old = weights.model
    size, patch = wish.image_size or old.image_size, wish.patch_size or old.patch_size
    return resize(weights, size, patch_size=patch, method=wish.posemb_method)


def resize(
    weights: Weights,
    image_size: int | tuple[int, int],
    *,
    patch_size: int | None = None,
    method: str | None = None,
) -> Weights:
    """The same weights for images of another size or aspect, or for patches of another size.

    Positions are resized by `method` or as the model has it, the patch embedding by flexi.resize. Raises
    UserError for a Mixer, relative biases or a bad size.
    """
    old = weights.model
    method = method or old.posemb_method
    posemb.check_method(method)
    new = dataclasses.replace(old, image_size=image_size, patch_size=patch_size or old.patch_size)
    weights = _repatched(weights, new.patch_size)
    if old.grid_hw == new.grid_hw:
        return weights._replace(model=new)
    fixed = "biases for relative positions" if old.relative_bias else ""
    if fixed := "a Mixer's weights" if old.family == "mixer" else fixed:
        fail(
            f"image_size={image_size}: {fixed} fit only the {_by(old.grid_hw)} patches they were "
            f"trained on: use image_size={old.image_size}"
        )
    if old.posemb != "learned":
        return weights._replace(model=new)
    slots = (old.class_token + old.distill_token) if old.posemb_class_slot else 0
    stored_1nd = weights.params["embed"]["positions"]
    resized_1nd = posemb.resize(stored_1nd, old.grid_hw, new.grid_hw, method=method, slots=slots)
    embed = weights.params["embed"] | {"positions": resized_1nd}
    note = Note("embed/positions", f"{_by(old.grid_hw)} to {_by(new.grid_hw)} by {method}")
    report = dataclasses.replace(weights.report, resized=(*weights.report.resized, note))
    return weights._replace(model=new, params=weights.params | {"embed": embed}, report=report)


def _repatched(weights: Weights, patch_size: int) -> Weights:
    old = weights.model.patch_size
    if old == patch_size:
        return weights
    embed = weights.params["embed"]
    patch = embed["patch"] | {"kernel": flexi.resize(embed["patch"]["kernel"], patch_size)}
    note = Note(
        "embed/patch/kernel", f"{old}x{old} to {patch_size}x{patch_size} pixels by the pseudo-inverse"
    )
    report = dataclasses.replace(weights.report, resized=(*weights.report.resized, note))
    return weights._replace(params=weights.params | {"embed": embed | {"patch": patch}}, report=report)


def reset_head(weights: Weights, classes: int, *, keep_pre_logits: bool = True) -> Weights:
    """The same weights with a zero head of `classes`, and without the hidden layer before it if so asked.

    Raises UserError for a class count below 1.
    """
    at_least("classes", classes, 1)
    old, params, reset = weights.model, dict(weights.params), []
    dropped = bool(old.pre_logits) and not keep_pre_logits
    if dropped:
        rest = {name: part for name, part in params.pop("pool").items() if name != "pre_logits"}
        params |= {"pool": rest} if rest else {}
        reset.append(Note("pool/pre_logits", "dropped, as asked"))
    model = dataclasses.replace(old, classes=classes)
    if dropped:
        model = dataclasses.replace(model, pre_logits=0, pre_logits_form="tanh")
    for name in ("head", "head_distill")[: 1 + old.heads_distill]:
        kernel = np.zeros((model.features, classes), np.float32)
        params[name] = {"kernel": kernel, "bias": np.full(classes, model.head_bias, np.float32)}
        reset.append(Note(name, f"zeros for {classes} classes, in place of {old.classes or 'none'}"))
    report = dataclasses.replace(weights.report, reset=(*weights.report.reset, *reset))
    return weights._replace(model=model, params=params, class_names=(), report=report)


def _by(grid_hw: tuple[int, int]) -> str:
    return f"{grid_hw[0]}x{grid_hw[1]}"
