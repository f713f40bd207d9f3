"""The state that a run begins with: restored, from other weights, or fresh; and what of it is kept."""

from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.config import to_dict
from vit_jax.run import provenance, refs
from vit_jax.run.checkpoint import Checkpoints
from vit_jax.run.setup import Job
from vit_jax.training.step import State
from vit_jax.weights.adapt import Weights


def begin(
    checkpoints: Checkpoints, job: Job, weights: Weights | None = None
) -> tuple[State, dict[str, float]]:
    """(state, metrics of the last evaluation) to go on from; `weights` are those of `read_init`, if read.

    Raises UserError for weights that do not fit.
    """
    return _restore(checkpoints, job) or _fresh(job, checkpoints.notices, weights)


def read_init(job: Job) -> Weights:
    """What `init` of the config names, for the run's model. Raises UserError for weights that do not fit."""
    cfg, spec = job.cfg, job.spec
    return refs.read_for(
        spec.model, cfg.init, channels=spec.preprocess.channels, posemb_method=cfg.init_posemb
    )


def trees(job: Job, state: State) -> dict[str, Any]:
    """What a checkpoint holds of the state."""
    written = job.unpack(state)
    return {"params": written.params, "rest": rest(written)}


def rest(state: State) -> dict[str, Any]:
    """What a checkpoint holds of the state beside parameters and step."""
    kept = {"opt_state": state.opt_state, "window": state.window, "guard": state.guard}
    return kept if state.ema is None else kept | {"ema": state.ema}


def record(job: Job, metrics: dict[str, float]) -> dict[str, Any]:
    """What a checkpoint tells of the run that it is from."""
    own = {"config": to_dict(job.cfg), "spec": to_dict(job.spec), "steps": job.steps, "metrics": metrics}
    return own | provenance.collect()


def _fresh(job: Job, notices: list[str], weights: Weights | None) -> tuple[State, dict[str, float]]:
    cfg, spec = job.cfg, job.spec
    if not cfg.init:
        return job.init(), {}
    weights = weights or read_init(job)
    notices.append(str(weights.report))
    if (weights.preprocess.mean, weights.preprocess.std) != (spec.preprocess.mean, spec.preprocess.std):
        notices.append(
            f"note: init was trained with mean {weights.preprocess.mean}, std {weights.preprocess.std}"
        )
    return job.adopt(weights.params), {}


def _restore(checkpoints: Checkpoints, job: Job) -> tuple[State, dict[str, float]] | None:
    like = job.stored
    found = checkpoints.restore(params=like.params, rest=rest(like))
    if found is None:
        return None
    told, trees = found
    step = jax.device_put(jnp.int32(told["step"]), like.step.sharding)
    state = State(**({"step": step, "params": trees["params"], "ema": None} | trees["rest"]))
    return job.pack(state), told["metrics"]
