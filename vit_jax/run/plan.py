"""A run before it starts: its length, work, memory per device and layout, and what would make it fit."""

import dataclasses
import math
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.data.loader import rows_of
from vit_jax.data.source import Splits
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.run import first_state, program
from vit_jax.run.program import NO_COST, Cost
from vit_jax.run.setup import Setup, set_up
from vit_jax.run.target import Target
from vit_jax.sections import Config, seen_size
from vit_jax.training import mesh as meshes
from vit_jax.training import schedules, tables
from vit_jax.weights.adapt import Weights

GIB = 2**30
BACKWARD = 3  # a training step's products over a forward pass's: one forward, two backward
# "... HLO temporaries (48.19G) exceeds available HBM (15.75G)", "Used 30.1G of 15.75G hbm"
REFUSED = re.compile(r"\(([\d.]+)G\) exceeds available HBM|Used ([\d.]+)G of")


class Measured(NamedTuple):
    """What the compiler says of a step on one device; of a program that it refuses, the memory alone."""

    memory_bytes: int
    held: dict[str, int]  # the same by what it is for
    cost: Cost
    seconds: float  # to compile
    refused: bool = False

    def fits(self, limit_bytes: int) -> bool:
        """Whether a device of so much memory runs it."""
        return not self.refused and self.memory_bytes <= limit_bytes


class Estimate(NamedTuple):
    """What a run would take on a slice that is not here: the compiler's estimate, not a measured time."""

    target: str
    step_s: float
    images_per_s: float
    hours: float  # of all steps; not of evaluations, saves and what data takes
    share_of_peak: float  # the model's operations, of the chips' in that time
    eval_memory_bytes: int


class Plan(NamedTuple):
    """The plan of one run; if it does not fit, `remedies` has the changes tried, up to one that fits."""

    steps: int
    epochs: float
    schedule: str
    parameters: int
    trained_parameters: int
    flops_per_image: float
    memory_per_device_bytes: int
    memory_held: dict[str, int]
    limit_bytes: int | None
    fits: bool | None
    devices: str
    batch_per_device: int
    sharding: dict[str, str]
    collectives: list[dict[str, Any]]
    compile_s: float
    estimate: dict[str, Any] | None
    remedies: list[dict[str, Any]]


def make(cfg: Config, data: Splits, *, limit_bytes: int | None = None, target: Target | None = None) -> Plan:
    """Compile the step of `cfg` and read what the compiler says; no state is made.

    `limit_bytes` is the memory of a device, or None for what the device says itself (a CPU says nothing).
    With a `target` all is compiled for its devices. Raises UserError for a config that cannot run.
    """
    teacher = first_state.read_teacher(cfg)
    mesh = mesh_of(cfg, target)
    limit_bytes = limit_bytes or (int(target.chip.hbm_gib * GIB) if target else _limit(mesh.devices.flat[0]))
    with jax.set_mesh(mesh):
        setup = set_up(cfg, mesh, data, teacher)
        measured = measure(setup)
        evaluation = setup.evaluate.compile(setup.model_params()) if target and not measured.refused else None
    flops = flops_per_image(setup)
    estimate = None
    if target and evaluation and measured.cost.cycles:
        estimate = _estimate(setup, measured, target, flops, evaluation)
    fits = None if limit_bytes is None else measured.fits(limit_bytes)
    o, train = cfg.optim, cfg.train
    up, down = schedules.ramps(o, setup.steps)
    chosen = jax.tree.leaves(tables.trained(setup.forms.stored.params, o))
    sizes = [x.size for x in jax.tree.leaves(setup.forms.stored.params)]
    whole = build.count(setup.model_params())
    return Plan(
        steps=setup.steps,
        epochs=setup.steps * train.batch_size / data.train.size,
        schedule=f"{o.name} at {o.lr:g}, {up} up, {o.schedule}, {down} down",
        parameters=whole,
        trained_parameters=sum(n for n, c in zip(sizes, chosen, strict=True) if c),
        flops_per_image=flops,
        memory_per_device_bytes=measured.memory_bytes,
        memory_held=measured.held,
        limit_bytes=limit_bytes,
        fits=fits,
        devices=meshes.describe(mesh),
        batch_per_device=train.batch_size // mesh.size // train.micro_batches,
        sharding=_sharding(setup),
        collectives=[row._asdict() for row in measured.cost.collectives],
        compile_s=measured.seconds,
        estimate=estimate and estimate._asdict(),
        remedies=_remedies(cfg, data, teacher, limit_bytes, target) if limit_bytes and not fits else [],
    )


def measure(setup: Setup) -> Measured:
    """Compile the step: bytes per device of arguments, results not in their place and scratch; its cost."""
    start = time.perf_counter()
    try:
        compiled = setup.lower_step().compile()
    except jax.errors.JaxRuntimeError as e:
        match = REFUSED.search(str(e))
        if match is None:
            raise
        needed = int(float(match[1] or match[2]) * GIB)
        return Measured(needed, {}, NO_COST, time.perf_counter() - start, refused=True)
    seconds = time.perf_counter() - start
    m: Any = compiled.memory_analysis()
    memory = _bytes(m)
    state = setup.forms.packed
    held = {"parameters": _share(state.params), "optimizer": _share(state.opt_state)}
    held |= {"batch": _share(setup.batch_like()), "temporaries": m.temp_size_in_bytes}
    held["other"] = memory - sum(held.values())
    return Measured(memory, held, program.read(compiled.as_text() or "", dict(setup.mesh.shape)), seconds)


def _bytes(m: Any) -> int:
    return m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes


def _share(tree: Any) -> int:
    """Bytes of a tree of abstract arrays that one device holds."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _estimate(
    setup: Setup, measured: Measured, target: Target, flops: float, evaluation: jax.stages.Compiled
) -> Estimate:
    step_s = target.chip.seconds(measured.cost)
    images_per_s = setup.cfg.train.batch_size / step_s
    return Estimate(
        target=target.name,
        step_s=step_s,
        images_per_s=images_per_s,
        hours=setup.steps * step_s / 3600,
        share_of_peak=images_per_s * flops / (len(target.devices) * target.chip.peak_flops),
        eval_memory_bytes=_bytes(evaluation.memory_analysis()),
    )


def mesh_of(cfg: Config, target: Target | None) -> Mesh:
    """The mesh of the target's devices, or of those that are here."""
    return meshes.over(target.devices, cfg.fsdp) if target else meshes.make(cfg.device, cfg.fsdp)


def flops_per_image(setup: Setup) -> float:
    """Floating-point operations of training, per image: three times the written-out model's forward pass."""
    given = rows_of(seen_size(setup.spec.model, setup.spec.preprocess), 1, setup.cfg.data.channels)
    like = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32 if x.dtype == jnp.uint8 else x.dtype)
    image = jax.tree.map(like, given)
    model = build.build(setup.spec.model)
    stored = jax.eval_shape(setup.forms.unpack, setup.model_params())
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored)
    cost: Any = jax.jit(lambda p, x: model.apply({"params": p}, x)).lower(params, image).cost_analysis()
    return BACKWARD * float(cost["flops"])


def show(plan: Plan) -> str:
    """A plan as text."""
    limit = "unknown limit" if plan.limit_bytes is None else f"of {plan.limit_bytes / GIB:.2f} GiB"
    split = [f"  {name}: {spec}" for name, spec in plan.sharding.items()] or [
        "  nothing: each device has a whole copy"
    ]
    held = ", ".join(f"{name} {size / GIB:.3f}" for name, size in plan.memory_held.items())
    exchanged = [
        f"{c['times']} {c['kind']} over {c['axes']}, {c['bytes'] / 2**20:,.1f} MiB" for c in plan.collectives
    ]
    lines = [
        f"devices: {plan.devices}",
        f"run: {plan.steps:,} steps, {plan.epochs:.1f} epochs; {plan.schedule}",
        f"model: {plan.parameters:,} parameters, {plan.trained_parameters:,} trained",
        f"work: {plan.flops_per_image / 1e9:.3f} GFLOP per image in training",
        f"batch: {plan.batch_per_device} examples at a time on each device",
        f"memory: {plan.memory_per_device_bytes / GIB:.3f} GiB per device, {limit}"
        + (f" ({held})" if held else ""),
        f"exchanged in a step: {'; '.join(exchanged) or 'nothing'}",
        *([_estimate_line(Estimate(**plan.estimate))] if plan.estimate else []),
        f"compiled in {plan.compile_s:.0f} s",
        "split over devices:",
        *split,
    ]
    if plan.fits is False:
        lines.append("does not fit. Tried, gentlest first, up to what fits:")
        for r in plan.remedies:
            verdict = "fits" if r["fits"] else "does not fit"
            verdict += f", {r['images_per_s']:,.0f} images/s by that estimate" if r["images_per_s"] else ""
            lines.append(f"  {r['change']}: {r['memory_per_device_bytes'] / GIB:.3f} GiB, {verdict}")
    return "\n".join(lines)


def _estimate_line(e: Estimate) -> str:
    return (
        f"estimate of {e.target}'s compiler, not a measured time: {e.step_s * 1e3:,.1f} ms per step, "
        f"{e.images_per_s:,.0f} images/s, {e.share_of_peak:.0%} of the chips' peak, {e.hours:,.1f} hours of "
        f"steps; evaluation takes {e.eval_memory_bytes / GIB:.3f} GiB per device"
    )


def _remedies(
    cfg: Config, data: Splits, teacher: Weights | None, limit_bytes: int, target: Target | None
) -> list[dict[str, Any]]:
    """The knobs that save memory, gentlest first, up to the first that fits: each is a compilation.

    That which fits a target has its estimated speed too.
    """
    tried = []
    for changes in _candidates(cfg, target):
        try:
            measured = measure_changed(cfg, changes, data, teacher, target)
        except UserError:
            continue  # a batch that cannot be cut so
        change = flags(changes)
        fits = measured.fits(limit_bytes)
        step_s = target.chip.seconds(measured.cost) if target and fits else 0.0
        row = {"change": change, "memory_per_device_bytes": measured.memory_bytes, "fits": fits}
        tried.append(
            row | {"step_s": step_s, "images_per_s": cfg.train.batch_size / step_s if step_s else 0.0}
        )
        if fits:
            break
    return tried


def _candidates(cfg: Config, target: Target | None) -> list[dict[str, Any]]:
    most = meshes.near(mesh_of(dataclasses.replace(cfg, fsdp=1), target).devices.ravel().tolist())
    parts = cfg.train.micro_batches
    out: list[dict[str, Any]] = [{"train.micro_batches": parts * 2}, {"train.micro_batches": parts * 8}]
    if cfg.train.remat == "none":
        out += [{"train.remat": "full"}, {"train.remat": "full", "train.micro_batches": parts * 4}]
    if cfg.fsdp < most:
        out += [{"fsdp": most}, {"fsdp": most, "train.remat": "full", "train.micro_batches": parts * 4}]
    return out


def measure_changed(
    cfg: Config, changes: dict[str, Any], data: Splits, teacher: Weights | None, target: Target | None
) -> Measured:
    """`measure` with other fields, as {"train.remat": "full"}. Raises UserError if it cannot run so."""
    other = _changed(cfg, changes)
    mesh = mesh_of(other, target)
    with jax.set_mesh(mesh):
        return measure(set_up(other, mesh, data, teacher))


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


def flags(changes: dict[str, Any]) -> str:
    """Such changes as arguments of a command line."""
    return " ".join(f"--config.{name}={value}" for name, value in changes.items())


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
