"""What distinguishes one dialect of weight files from another."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from vit_jax.sections import Model, Preprocess
from vit_jax.weights.names import Names
from vit_jax.weights.parts import Shape, Table

Flat = dict[str, np.ndarray]


class Dialect(NamedTuple):
    """Names of one family's arrays, where they lie in a file, and what the file leaves unsaid."""

    name: str
    family: Literal["vit", "mixer"]
    names: Names
    prefix: str  # of every name in the files that are written
    class_slot: bool  # the class token always has a position; else only in old files, told by their count
    absent_posemb: Literal["none", "sincos2d"]  # what a file without positions means
    preprocess: Preprocess  # what published results were measured with
    pack: Callable[[Flat, Model], Flat]  # our arrays, under our names, in the shapes of the dialect


class TorchDialect(NamedTuple):
    """One family of torch files: where its arrays lie, and what they leave unsaid."""

    name: str  # what a user calls the dialect
    variant: str  # the family within it
    table: Table
    ignored: dict[str, str]  # {pattern of their name: why no model here has a use for it}
    numerics: dict[str, Any]  # fields of the model that no array tells
    posemb_method: str  # how the family resizes positions
    preprocess: Callable[[Model], Preprocess]
    holds: Callable[[Model], bool]
    fits: Callable[[dict[str, Shape]], bool]  # what tells variants of the same names apart
    pack: Callable[[Flat, Model], Flat]  # our arrays with the positions that the family has


def add_class_slot(params: Flat, model: Model) -> Flat:
    """Positions with a slot for each class token, which is zero where the model had none."""
    if not model.class_token or model.posemb != "learned" or model.posemb_class_slot:
        return params
    pos_1nd = params["embed/positions"]
    slots_1nd = np.zeros((1, 1 + model.distill_token, pos_1nd.shape[2]), np.float32)
    return params | {"embed/positions": np.concatenate([slots_1nd, pos_1nd], axis=1)}


def merge_class_slot(params: Flat, model: Model) -> Flat:
    """Positions of patches alone: the class tokens' are added to the tokens, which computes the same."""
    if not model.class_token or model.posemb != "learned" or not model.posemb_class_slot:
        return params
    pos_1nd, names = params["embed/positions"], ["embed/class_token"]
    names += ["embed/distill_token"] if model.distill_token else []
    merged = {name: params[name] + pos_1nd[:, i : i + 1] for i, name in enumerate(names)}
    return params | merged | {"embed/positions": pos_1nd[:, len(names) :]}
