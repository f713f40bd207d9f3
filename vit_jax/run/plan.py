"""A run before it starts: its length, work, memory a device and layout, and what would make it fit."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.source import Splits
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.run import first_state
from vit_jax.run.setup import Setup, set_up
from vit_jax.sections import Config
from vit_jax.training import mesh as meshes
from vit_jax.training import tables
from vit_jax.weights.adapt import Weights

GIB = 2**30
BACKWARD = 3  # a training step's products over a forward pass's: one forward, two backward


class Plan(NamedTuple):
    """The plan of one run; if it does not fit, `remedies` has the changes tried, up to one that fits."""

    steps: int
    epochs: float
    schedule: str
    parameters: int
    trained_parameters: int
    flops_per_image: float
    memory_per_device_bytes: int
    limit_bytes: int | None
    fits: bool | None
    devices: str
    batch_per_device: int
    sharding: dict[str, str]
    remedies: list[dict[str, Any]]


def make(cfg: Config, data: Splits, *, limit_bytes: int | None = None) -> Plan:
    """Compile the step of `cfg` and read what the compiler says; no state is made.

    `limit_bytes` is the memory of a device, or None for what the device says itself (a CPU says nothing).
    Raises UserError for a config that cannot run.
    """
    mesh = meshes.make(cfg.device, cfg.fsdp)
    limit_bytes = limit_bytes or _limit(mesh.devices.flat[0])
    teacher = first_state.read_teacher(cfg)
    with jax.set_mesh(mesh):
        setup = set_up(cfg, mesh, data, teacher)
        memory = memory_bytes(setup)
    fits = None if limit_bytes is None else memory <= limit_bytes
    o, train = cfg.optim, cfg.train
    chosen = jax.tree.leaves(tables.trained(setup.forms.stored.params, o))
    sizes = [x.size for x in jax.tree.leaves(setup.forms.stored.params)]
    return Plan(
        steps=setup.steps,
        epochs=setup.steps * train.batch_size / data.train.size,
        schedule=f"{o.name} at {o.lr:g}, {o.warmup_steps} up, {o.schedule}, {o.cooldown_steps} down",
        parameters=sum(sizes),
        trained_parameters=sum(n for n, c in zip(sizes, chosen, strict=True) if c),
        flops_per_image=flops_per_image(setup),
        memory_per_device_bytes=memory,
        limit_bytes=limit_bytes,
        fits=fits,
        devices=meshes.describe(mesh),
        batch_per_device=train.batch_size // mesh.size // train.micro_batches,
        sharding=_sharding(setup),
        remedies=_remedies(cfg, data, teacher, limit_bytes) if limit_bytes and not fits else [],
    )


def memory_bytes(setup: Setup) -> int:
    """Bytes a device that the compiled step needs: arguments, results not in their place, and scratch."""
    m: Any = setup.lower_step().compile().memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes


def flops_per_image(setup: Setup) -> float:
    """Floating-point operations of training, an image: three times the written-out model's forward pass."""
    image = jax.ShapeDtypeStruct((1, *setup.spec.model.image_hw, setup.cfg.data.channels), jnp.float32)
    model = build.build(setup.spec.model)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), setup.forms.stored.params)
    cost: Any = jax.jit(lambda p, x: model.apply({"params": p}, x)).lower(params, image).cost_analysis()
    return BACKWARD * float(cost["flops"])


def show(plan: Plan) -> str:
    """A plan as text."""
    limit = "unknown limit" if plan.limit_bytes is None else f"of {plan.limit_bytes / GIB:.2f} GiB"
    split = [f"  {name}: {spec}" for name, spec in plan.sharding.items()] or [
        "  nothing: each device has a whole copy"
    ]
    lines = [
        f"devices: {plan.devices}",
        f"run: {plan.steps:,} steps, {plan.epochs:.1f} epochs; {plan.schedule}",
        f"model: {plan.parameters:,} parameters, {plan.trained_parameters:,} trained",
        f"work: {plan.flops_per_image / 1e9:.3f} GFLOP an image in training",
        f"batch: {plan.batch_per_device} examples at a time on each device",
        f"memory: {plan.memory_per_device_bytes / GIB:.3f} GiB a device, {limit}",
        "split over devices:",
        *split,
    ]
    if plan.fits is False:
        lines.append("does not fit. Tried, gentlest first, up to what fits:")
        for r in plan.remedies:
            verdict = "fits" if r["fits"] else "does not fit"
            lines.append(f"  {r['change']}: {r['memory_per_device_bytes'] / GIB:.3f} GiB, {verdict}")
    return "\n".join(lines)


def _remedies(cfg: Config, data: Splits, teacher: Weights | None, limit_bytes: int) -> list[dict[str, Any]]:
    """The knobs that save memory, gentlest first, up to the first that fits: each is a compilation."""
    tried = []
    for changes in _candidates(cfg):
        try:
            other = _changed(cfg, changes)
            mesh = meshes.make(other.device, other.fsdp)
            with jax.set_mesh(mesh):
                memory = memory_bytes(set_up(other, mesh, data, teacher))
        except UserError:
            continue  # a batch that cannot be cut so
        change = " ".join(f"--config.{name}={value}" for name, value in changes.items())
        tried.append({"change": change, "memory_per_device_bytes": memory, "fits": memory <= limit_bytes})
        if memory <= limit_bytes:
            break
    return tried


def _candidates(cfg: Config) -> list[dict[str, Any]]:
    devices = len(jax.devices() if cfg.device == "any" else jax.devices(cfg.device))
    parts = cfg.train.micro_batches
    out: list[dict[str, Any]] = [{"train.micro_batches": parts * 2}, {"train.micro_batches": parts * 8}]
    if cfg.train.remat == "none":
        out += [{"train.remat": "full"}, {"train.remat": "full", "train.micro_batches": parts * 4}]
    if cfg.fsdp < devices:
        out += [{"fsdp": devices}, {"fsdp": devices, "train.remat": "full", "train.micro_batches": parts * 4}]
    return out


def _changed(cfg: Config, changes: dict[str, Any]) -> Config:
    for name, value in changes.items():
        section, _, leaf = name.rpartition(".")
        part = (
            {section: dataclasses.replace(getattr(cfg, section), **{leaf: value})}
            if section
            else {leaf: value}
        )
        cfg = dataclasses.replace(cfg, **part)
    return cfg


def _sharding(setup: Setup) -> dict[str, str]:
    """{name: shape and how it is split} of the parameters that are split over devices."""
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(setup.forms.stored.params):
        if any(x.sharding.spec):
            part = x.sharding.shard_shape(x.shape)
            found[tables.name_of(path)] = (
                f"{x.shape} to {part} on each of {np.prod(x.shape) // np.prod(part)}"
            )
    return found


def _limit(device: Any) -> int | None:
    stats = device.memory_stats()
    return stats["bytes_limit"] if stats and "bytes_limit" in stats else None
