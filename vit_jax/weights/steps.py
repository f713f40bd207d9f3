"""From one step of a run of ours to its weights: its record tells the model."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from vit_jax.config import parse_spec, parse_stored
from vit_jax.errors import UserError
from vit_jax.models import build, lora
from vit_jax.paths import Path
from vit_jax.sections import Config, Model, Spec
from vit_jax.weights import layout
from vit_jax.weights.adapt import Weights, Wish
from vit_jax.weights.formats import orbax
from vit_jax.weights.report import Report

Reader = Callable[[str, Wish], Weights]  # of any reference


def read(step_dir: Path, read_ref: Reader) -> Weights:
    """The weights of a step, adapters merged into the weights that `read_ref` reads. Raises UserError."""
    with jax.set_mesh(None):  # arrays of one device are refused where a run has set its mesh
        return _read(step_dir, read_ref)


def _read(step_dir: Path, read_ref: Reader) -> Weights:
    record = orbax.read_record(step_dir)
    cfg, spec = recorded(record)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = layout.shapes(spec.model, channels=spec.preprocess.channels)
    whole = unflatten_dict({name: jax.ShapeDtypeStruct(s, np.float32) for name, s in shapes.items()}, sep="/")
    stored = jax.eval_shape(lambda x: _apart(x, cfg)[0], whole) if cfg.optim.lora_rank else whole
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored)
    params = orbax.read_trees(step_dir, record, params=like)["params"]
    if cfg.optim.lora_rank:
        params = lora.merge(params, _read_base(step_dir, record, spec.model, read_ref), cfg.optim)
    params = jax.device_get(params)
    report = Report(
        source=str(step_dir), dialect="vit_jax", parameters=build.count(params), loaded=tuple(shapes)
    )
    facts = {"loss": spec.loss, "multi_label": spec.multi_label, "config": cfg}
    return Weights(spec.model, params, spec.class_names, spec.preprocess, report, **facts)


def recorded(record: dict[str, Any]) -> tuple[Config, Spec]:
    """The config and the spec in the record of a step, by this version or an older one."""
    cfg = parse_stored(record["config"])
    # The specs of older runs do not have the loss.
    return cfg, parse_spec({"loss": cfg.loss.name} | record["spec"])


def wish_of(cfg: Config, model: Model) -> Wish:
    """How a run of `cfg` wants the weights that its `init` names."""
    return Wish(
        image_size=model.image_size,
        classes=model.classes,
        posemb_method=posemb_method(cfg),
        keep_pre_logits=bool(model.pre_logits),
    )


def posemb_method(cfg: Config) -> str | None:
    """How a run of `cfg` wants positions resized; None: as the family of the file does."""
    return None if cfg.init_posemb == "auto" else cfg.init_posemb


def check_base(name: str, record: dict[str, Any], cfg: Config, digests: dict[str, int]) -> None:
    """Raise UserError unless the base of a run's adapters is the one that they were trained beside."""
    if other := [path for path, digest in record["base"].items() if digests.get(path) != digest]:
        raise UserError(
            f"{name} has adapters of other weights than init={cfg.init} now holds: {len(other)} arrays "
            f"differ, such as {other[0]}: put back what the run began with, or continue it with that as init"
        )


def _read_base(step_dir: Path, record: dict[str, Any], model: Model, read_ref: Reader) -> Any:
    """What the adapters of a step stand beside, which is to be what its run began with."""
    cfg, _ = recorded(record)
    try:
        return _base_of(cfg, step_dir, record, model, read_ref)
    except UserError:
        now = step_dir.parent.parent / orbax.CONFIG  # of the run, which may have gone on with another init
        again = parse_stored(json.loads(now.read_text())) if now.is_file() else cfg
        if again.init == cfg.init:
            raise
    return _base_of(again, step_dir, record, model, read_ref)


def _base_of(cfg: Config, step_dir: Path, record: dict[str, Any], model: Model, read_ref: Reader) -> Any:
    try:
        params = read_ref(cfg.init, wish_of(cfg, model)).params
    except UserError as error:
        raise UserError(
            f"{step_dir} has adapters of init={cfg.init}, which is needed beside them: {error}"
        ) from error
    base = jax.tree.map(jnp.asarray, _apart(params, cfg)[1])
    check_base(str(step_dir), record, cfg, orbax.digest(base))
    return base


def _apart(params: Any, cfg: Config) -> tuple[Any, Any]:
    return lora.split(params, cfg.optim, jax.random.key(cfg.seed))
