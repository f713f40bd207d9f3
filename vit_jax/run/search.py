"""The fastest way to run a config on chips that are not here, by their compiler's estimate."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from vit_jax.data.source import Splits
from vit_jax.errors import UserError
from vit_jax.run import first_state, plan
from vit_jax.run.plan import GIB, Measured
from vit_jax.run.setup import set_up
from vit_jax.run.target import Target
from vit_jax.sections import Config

Changes = dict[str, Any]
REMAT = ("none", "dots", "full")  # by what each computes again
MOST_PARTS = 64  # micro-batches


class Tried(NamedTuple):
    """What was compiled: how it differs, bytes a chip, and the estimated speed, 0 if it does not fit."""

    changes: Changes
    memory_per_device_bytes: int
    images_per_s: float

    @property
    def fits(self) -> bool:
        """Whether a chip has the memory."""
        return self.images_per_s > 0


def best(cfg: Config, data: Splits, target: Target, *, say: Callable[[str], None] = print) -> list[Tried]:
    """What was tried, the fastest first, those that do not fit last; `say` is told of each as it is compiled.

    Raises UserError if `cfg` cannot run on the target at all.
    """
    teacher, limit = first_state.read_teacher(cfg), int(target.chip.hbm_gib * GIB)

    def compile_it(changes: Changes) -> Tried:
        say(f"compiling: {plan.flags(changes) or 'as given'}")
        other = plan.changed(cfg, changes)
        mesh = plan.mesh_of(other, target)
        with jax.set_mesh(mesh):
            measured = plan.measure(set_up(other, mesh, data, teacher))
        return _tried(changes, measured, cfg.train.batch_size, limit, target.chip.clock_hz)

    return search(cfg, len(target.devices), limit, compile_it)


def search(cfg: Config, devices: int, limit: int, compile_it: Callable[[Changes], Tried]) -> list[Tried]:
    """As `best`, with the compilation given. Few are compiled, by what is known of each change:

    More micro-batches save memory and cost time, so each way of remat and fsdp gets the fewest that fit.
    Twice as many take at least half the memory: what cannot fit by that is passed over. The fastest of all
    is tried scanned, or written out, as it was not.
    """
    tried = [one for way in _ways(cfg, devices) for one in _fewest_parts(cfg, way, limit, compile_it)]
    fastest = max(tried, key=lambda one: one.images_per_s)
    if fastest.fits:
        tried.append(compile_it(fastest.changes | {"train.scan": not cfg.train.scan}))
    return sorted(tried, key=lambda one: -one.images_per_s)


def _ways(cfg: Config, devices: int) -> Iterator[Changes]:
    """Remat as given or more of it, fsdp as given or over all chips."""
    more = REMAT[REMAT.index(cfg.train.remat) + 1 :]
    remats: list[Changes] = [{}, *({"train.remat": kind} for kind in more)]
    splits: list[Changes] = [{}, {"fsdp": devices}] if cfg.fsdp < devices else [{}]
    for remat, split in itertools.product(remats, splits):
        yield remat | split


def _fewest_parts(
    cfg: Config, way: Changes, limit: int, compile_it: Callable[[Changes], Tried]
) -> list[Tried]:
    """`way` with twice the micro-batches again and again, until it fits or cannot be cut further."""
    tried: list[Tried] = []
    parts = cfg.train.micro_batches
    while parts <= MOST_PARTS:
        more = {"train.micro_batches": parts} if tried else {}
        try:
            tried.append(compile_it(way | more))
        except UserError:
            if not (way or more):
                raise
            break  # a batch, or a mesh, that cannot be cut so
        if tried[-1].fits:
            break
        needed, parts = tried[-1].memory_per_device_bytes / 2, parts * 2
        while needed > limit:
            needed, parts = needed / 2, parts * 2
    return tried


def _tried(changes: Changes, measured: Measured, batch: int, limit: int, clock_hz: float) -> Tried:
    fits = not measured.refused and measured.memory_bytes <= limit
    return Tried(changes, measured.memory_bytes, batch * clock_hz / measured.cost.cycles if fits else 0.0)


def show(ranked: list[Tried], target: Target) -> str:
    """What was tried as a table, and the arguments of the first."""
    lines = [f"by the estimates of {target.name}'s compiler, which are no measured times:"]
    for one in ranked:
        slower = f"{ranked[0].images_per_s / one.images_per_s - 1:+.0%} time" if one.fits else "does not fit"
        rate = f"{one.images_per_s:10,.0f} images/s" if one.fits else " " * 19
        memory = f"{one.memory_per_device_bytes / GIB:7.2f} GiB"
        lines.append(f"{rate}  {slower:12}  {memory}  {plan.flags(one.changes) or 'as given'}")
    if not ranked[0].fits:
        return "\n".join([*lines, "nothing that was tried fits: a smaller batch, or more chips"])
    return "\n".join([*lines, f"best: {plan.flags(ranked[0].changes) or 'as given'}"])
