"""From what a user calls a model to its weights: a run, one step of it, a file, an address, a name."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from vit_jax.config import parse_spec, parse_stored
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.run import checkpoint
from vit_jax.run.workdir import Workdir
from vit_jax.sections import FREE, Config, Model, Spec
from vit_jax.weights import adapt, posemb
from vit_jax.weights.adapt import Weights
from vit_jax.weights.fetch import is_model_folder
from vit_jax.weights.load import read as read_file
from vit_jax.weights.report import Report
from vit_jax.weights.save import flatten


def read(
    ref: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    classes: int | None = None,
    posemb_method: str | None = None,
    keep_pre_logits: bool = True,
    heads: int | None = None,
    headless: bool = False,
) -> tuple[Weights, Config | None]:
    """The weights of `ref`, and the config they were trained with where they come from a run of ours.

    A directory of ours stands for its best step, or for its newest if it has no best. Adapted to `image_size`
    and `classes` as `weights.load.read` does, which says what the other arguments mean. Raises UserError.
    """
    if not str(ref):
        raise UserError("the name of the model is empty: give a run, a file, an address or a published name")
    if posemb_method is not None:
        posemb.check_method(posemb_method)
    if not isinstance(image_size, int | tuple | None):
        raise UserError(f"image_size={image_size!r} is neither a number of pixels nor (height, width)")
    path = Path(ref)
    if path.name.isdigit() and not path.exists() and (steps := checkpoint.steps_in(path.parent)):
        raise UserError(f"{ref} is not there: {path.parent} has the steps {', '.join(map(str, steps))}")
    if not path.is_dir() or is_model_folder(path):
        adapted = {"image_size": image_size, "classes": classes, "posemb_method": posemb_method}
        told = {"heads": heads, "headless": headless}
        return read_file(ref, **adapted, **told, keep_pre_logits=keep_pre_logits), None
    weights, cfg = _read_step(step_dir(path))
    method = posemb_method or "official"
    return adapt.to(weights, classes, image_size, method=method, keep_pre_logits=keep_pre_logits), cfg


def read_for(model: Model, ref: str, *, channels: int, posemb_method: str) -> Weights:
    """The weights of `ref` for training `model`: positions resized, a head of other classes reset.

    Raises UserError with every field in which `ref` is another model.
    """
    weights, _ = read(
        ref,
        image_size=model.image_size,
        classes=model.classes,
        posemb_method=posemb_method,
        keep_pre_logits=bool(model.pre_logits),
    )
    wanted, got = dataclasses.asdict(model), dataclasses.asdict(weights.model)
    other = [
        f"model.{k}={wanted[k]!r} (it has {got[k]!r})"
        for k in wanted
        if k not in FREE and wanted[k] != got[k]
    ]
    if weights.preprocess.channels != channels:
        other.append(f"data.channels={channels} (it has {weights.preprocess.channels})")
    if model.pre_logits != weights.model.pre_logits:
        other.append(f"model.pre_logits={model.pre_logits} (it has {weights.model.pre_logits})")
    if other:
        raise UserError(f"init={ref} is another model than {', '.join(other)}: change the config or the file")
    return weights._replace(model=model)


def step_dir(ref: Path) -> Path:
    """The step that a run directory stands for: its best, else its newest. Raises UserError."""
    if (ref / checkpoint.PARAMS).is_dir():
        return ref
    run = Workdir(ref)
    for folder in (run.best, run.checkpoints, ref):
        steps = checkpoint.steps_in(folder)
        if steps:
            return folder / str(steps[-1])
    raise UserError(f"{ref} is neither a run directory with a checkpoint nor one step of it")


def _read_step(step_dir: Path) -> tuple[Weights, Config]:
    spec = parse_spec(checkpoint.read_record(step_dir)["spec"])
    record, trees = checkpoint.read(step_dir, params=_abstract_params(spec))
    params = jax.device_get(trees["params"])
    report = Report(
        source=str(step_dir),
        dialect="vit_jax",
        parameters=build.count(params),
        loaded=tuple(flatten(params)),
    )
    return Weights(spec.model, params, spec.class_names, spec.preprocess, report), parse_stored(
        record["config"]
    )


def _abstract_params(spec: Spec) -> Any:
    model, image_hw, channels = build.build(spec.model), spec.model.image_hw, spec.preprocess.channels
    shapes = jax.eval_shape(
        lambda: build.init(model, jax.random.key(0), image_hw=image_hw, channels=channels)
    )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
