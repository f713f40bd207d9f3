"""The state that a run begins with: restored, from other weights, or fresh; and its form in checkpoints."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.config import parse_stored, to_dict
from vit_jax.errors import UserError
from vit_jax.run import patience, provenance
from vit_jax.run.checkpoint import Checkpoints
from vit_jax.run.patience import Standing
from vit_jax.run.setup import Setup
from vit_jax.sections import MAY_DIFFER, Config
from vit_jax.training import mesh as meshes
from vit_jax.training import schedules
from vit_jax.training.step import State
from vit_jax.weights.adapt import Weights, Wish
from vit_jax.weights.formats import orbax
from vit_jax.weights.load import read
from vit_jax.weights.steps import check_base, posemb_method, wish_of


class Fixed(NamedTuple):
    """The arrays beside a state that no step changes, on the devices; None where the run has none.

    `base_digests` are what a checkpoint names the base by.
    """

    teacher_params: Any = None
    base_params: Any = None
    base_digests: dict[str, int] | None = None


def begin(
    checkpoints: Checkpoints, setup: Setup, weights: Weights | None = None, fixed: Fixed | None = None
) -> tuple[State, Standing]:
    """The first state and what evaluations came to; `weights` are those of `read_init`, if read.

    Raises UserError for weights that do not fit.
    """
    return _restore(checkpoints, setup, fixed or Fixed()) or _fresh(setup, checkpoints.notices, weights)


def read_init(setup: Setup) -> Weights:
    """The weights that `init` names, for the run's model: positions resized, a head of other classes reset.

    Raises UserError with every field in which they are of another model.
    """
    cfg, model, channels = setup.cfg, setup.spec.model, setup.spec.preprocess.channels
    weights = read(cfg.init, wish_of(cfg, model))
    wanted, got = dataclasses.asdict(model), dataclasses.asdict(weights.model)
    differing = [k for k in wanted if k not in MAY_DIFFER and wanted[k] != got[k]]
    differing += ["pre_logits"] if wanted["pre_logits"] != got["pre_logits"] else []
    # Initial values may differ, but LayerScale on or off is another set of parameters.
    differing += ["layer_scale"] if bool(wanted["layer_scale"]) != bool(got["layer_scale"]) else []
    other = [f"model.{k}={wanted[k]!r} (it has {got[k]!r})" for k in differing]
    if weights.preprocess.channels != channels:
        other.append(f"data.channels={channels} (it has {weights.preprocess.channels})")
    if other:
        raise UserError(
            f"init={cfg.init} is another model than {', '.join(other)}: change the config or the file"
        )
    as_in_file = dataclasses.replace(model, posemb_method=weights.model.posemb_method)
    return weights._replace(model=as_in_file)


def read_teacher(cfg: Config) -> Weights | None:
    """The weights that `loss.teacher` names, for images of the run's size. Raises UserError."""
    if not cfg.loss.teacher:
        return None
    return read(cfg.loss.teacher, Wish(image_size=cfg.model.image_size, posemb_method=posemb_method(cfg)))


def fix(setup: Setup, teacher: Weights | None, weights: Weights | None) -> Fixed:
    """The teacher's parameters, and those of `weights` that adapters leave as they are."""
    params = teacher and jax.device_put(teacher.params, meshes.shardings(teacher.params, setup.mesh))
    if not (setup.cfg.optim.lora_rank and weights):
        return Fixed(params)
    base = setup.base(weights.params)
    return Fixed(params, base, orbax.digest(setup.forms.unpack(base)))


def trees(setup: Setup, state: State) -> dict[str, Any]:
    """The arrays of the state that a checkpoint holds."""
    stored = setup.forms.unpack(state)
    return {"params": stored.params, "rest": rest(stored)}


def rest(state: State) -> dict[str, Any]:
    """The arrays of the state that a checkpoint holds beside parameters and step."""
    kept = {"opt_state": state.opt_state, "window": state.window, "guard": state.guard}
    return kept if state.ema is None else kept | {"ema": state.ema}


def record(setup: Setup, standing: Standing, fixed: Fixed) -> dict[str, Any]:
    """The description of the run that a checkpoint holds: config, spec, length, evaluations, provenance."""
    own = {
        "config": to_dict(setup.cfg),
        "spec": to_dict(setup.spec),
        "steps": setup.steps,
    }
    own |= {"base": fixed.base_digests} if fixed.base_digests else {}
    return own | standing.record(setup.cfg.train) | provenance.collect()


def _fresh(setup: Setup, notices: list[str], weights: Weights | None) -> tuple[State, Standing]:
    cfg, spec = setup.cfg, setup.spec
    if not cfg.init:
        return setup.init(), Standing({})
    weights = weights or read_init(setup)
    notices.append(str(weights.report))
    if cfg.optim.lora_rank and weights.config:
        notices.append(
            f"note: adapters need {weights.report.source} beside them: should that run train on, they are "
            "lost; what `convert` makes of it, as init, stays as it is"
        )
    was, now = dataclasses.asdict(weights.preprocess), dataclasses.asdict(spec.preprocess)
    other = [
        f"--config.data.{name}={','.join(map(str, v)) if isinstance(v, tuple) else v}"
        for name, v in was.items()
        if v != now[name]
    ]
    if (method := weights.model.posemb_method) != spec.model.posemb_method:
        other.append(f"--config.model.posemb_method={method}")
    if other:
        notices.append(f"note: init saw its images otherwise, as with {' '.join(other)}")
    return setup.adopt(weights.params), Standing({})


def _restore(checkpoints: Checkpoints, setup: Setup, fixed: Fixed) -> tuple[State, Standing] | None:
    like = setup.forms.stored
    found = checkpoints.restore(params=like.params, rest=rest(like))
    if found is None:
        return None
    record, trees = found
    if fixed.base_digests:
        check_base(f"step {record['step']}", record, setup.cfg, fixed.base_digests)
    if note := _change_of_rate(record, setup):
        checkpoints.notices.append(note)
    step = jax.device_put(jnp.int32(record["step"]), like.step.sharding)
    state = State(**({"step": step, "params": trees["params"], "ema": None} | trees["rest"]))
    return setup.forms.pack(state), patience.of_record(record, setup.cfg.train)


def _change_of_rate(record: dict[str, Any], setup: Setup) -> str:
    """A line if a run that continues does so at another learning rate than it would have had; else empty."""
    step, steps = record["step"], record["steps"]
    before, now = schedules.make(parse_stored(record["config"]).optim, steps), setup.schedule
    last, planned, next_ = map(float, jax.device_get([before(step - 1), before(step), now(step)]))
    if math.isclose(planned, next_, rel_tol=0.01):
        return ""
    return (
        f"note: the learning rate goes from {last:.3g} in step {step} to {next_:.3g} in the next: its "
        f"schedule was made for {steps} steps, and now for {setup.steps} with the config of today"
    )
