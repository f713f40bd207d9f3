"""What distinguishes one dialect of npz files from another."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from vit_jax.config import Model, Preprocess
from vit_jax.weights.names import Names

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


def add_class_slot(params: Flat, model: Model) -> Flat:
    """Positions with a slot for the class token, which is zero where the model had none."""
    if not model.class_token or model.posemb != "learned" or model.posemb_class_slot:
        return params
    pos_1nd = params["embed/positions"]
    slot_11d = np.zeros_like(pos_1nd[:, :1])
    return params | {"embed/positions": np.concatenate([slot_11d, pos_1nd], axis=1)}


def merge_class_slot(params: Flat, model: Model) -> Flat:
    """Positions of patches alone: the class token's is added to the token, which computes the same."""
    if not model.class_token or model.posemb != "learned" or not model.posemb_class_slot:
        return params
    pos_1nd, token_11d = params["embed/positions"], params["embed/class_token"]
    return params | {"embed/class_token": token_11d + pos_1nd[:, :1], "embed/positions": pos_1nd[:, 1:]}
