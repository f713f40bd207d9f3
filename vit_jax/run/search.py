"""The fastest way to run a config on chips that are not here, by their compiler's estimate."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vit_jax.data.source import Splits
from vit_jax.errors import UserError
from vit_jax.run import first_state, plan
from vit_jax.run.plan import GIB, Measured
from vit_jax.run.target import Chip, Target
from vit_jax.sections import Config
from vit_jax.training import mesh as meshes

Changes = dict[str, Any]
REMAT = ("none", "dots", "full")  # by what each computes again
MOST_PARTS = 64  # micro-batches
NO_FIT = f"{'does not fit':>30}"


class Tried(NamedTuple):
    """What was compiled: how it differs, bytes per chip, and the estimated speed, 0 if it does not fit."""

    changes: Changes
    memory_per_device_bytes: int
    images_per_s: float

    @property
    def fits(self) -> bool:
        """Whether a chip has the memory."""
        return self.images_per_s > 0


def best(cfg: Config, data: Splits, target: Target, *, say: Callable[[str], None] = print) -> list[Tried]:
    """What was tried, the fastest first, those that do not fit last.

    `say` gets a line before and after each compilation. Raises UserError if `cfg` cannot run on the
    target at all.
    """
    teacher, limit = first_state.read_teacher(cfg), int(target.chip.hbm_gib * GIB)

    def compile_it(changes: Changes) -> Tried:
        say(f"compiling: {plan.flags(changes) or 'as given'}")
        measured = plan.measure_changed(cfg, changes, data, teacher, target)
        one = _tried(changes, measured, cfg.train.batch_size, limit, target.chip)
        speed = f"{one.images_per_s:,.0f} images/s" if one.fits else "does not fit"
        say(f"  {one.memory_per_device_bytes / GIB:.2f} GiB, {speed}, after {measured.seconds:.0f} s")
        return one

    return search(cfg, meshes.near(target.devices), limit, compile_it)


def search(cfg: Config, most_fsdp: int, limit: int, compile_it: Callable[[Changes], Tried]) -> list[Tried]:
    """As `best`, with the compilation given. Few are compiled, by what is known of each change:

    Scanned blocks compile several times as quickly: all are scanned, and the fastest is then written out.
    Micro-batches, `fsdp` over at most `most_fsdp` chips and remat all save memory and cost time. The ways of
    remat and fsdp come by what they cost, each with the fewest micro-batches that fit; one that costs more is
    worth trying with fewer micro-batches alone. Twice as many take at least half the memory: what cannot fit
    by that is passed over.
    """
    tried: list[Tried] = []
    most = MOST_PARTS
    for way in _ways(cfg, most_fsdp):
        for parts in _parts(cfg.train.micro_batches, most, tried, limit):
            more = {"train.micro_batches": parts} if parts > cfg.train.micro_batches else {}
            try:
                tried.append(compile_it(way | more))
            except UserError:
                if not tried:
                    raise
                break  # a batch, or a mesh, that cannot be cut so
            if tried[-1].fits:
                most = parts // 2
                break
    fastest = max(tried, key=lambda one: one.images_per_s)
    if fastest.fits:
        tried.append(compile_it(fastest.changes | {"train.scan": False}))
    return sorted(tried, key=lambda one: -one.images_per_s)


def _ways(cfg: Config, most_fsdp: int) -> Iterator[Changes]:
    """Scanned; remat as given or more of it, fsdp as given or the most."""
    scan: Changes = {} if cfg.train.scan else {"train.scan": True}
    more = REMAT[REMAT.index(cfg.train.remat) + 1 :]
    remats: list[Changes] = [{}, *({"train.remat": kind} for kind in more)]
    splits: list[Changes] = [{}, {"fsdp": most_fsdp}] if cfg.fsdp < most_fsdp else [{}]
    for remat, split in itertools.product(remats, splits):
        yield scan | remat | split


def _parts(fewest: int, most: int, tried: list[Tried], limit: int) -> Iterator[int]:
    """Numbers of micro-batches to try, each after what the last one in `tried` needs was seen."""
    parts = fewest
    while parts <= most:
        yield parts
        needed = tried[-1].memory_per_device_bytes / 2
        parts *= 2
        while needed > limit:
            needed, parts = needed / 2, parts * 2


def _tried(changes: Changes, measured: Measured, batch: int, limit: int, chip: Chip) -> Tried:
    fits = measured.fits(limit)
    if fits and not measured.cost.cycles:
        raise UserError(
            f"the compiler gives no estimate of {plan.flags(changes) or 'this config'}: leave --best out"
        )
    return Tried(changes, measured.memory_bytes, batch / chip.seconds(measured.cost) if fits else 0.0)


def rows(ranked: list[Tried]) -> list[dict[str, Any]]:
    """The same as plain values; `slower` is 0.25 for a step that takes a quarter more time than the first."""
    out = []
    for one in ranked:
        row = {"flags": plan.flags(one.changes), "fits": one.fits}
        row |= {"memory_per_device_bytes": one.memory_per_device_bytes}
        slower = ranked[0].images_per_s / one.images_per_s - 1 if one.fits else None
        out.append(row | {"images_per_s": one.images_per_s or None, "slower": slower})
    return out


def show(ranked: list[Tried], target: Target) -> str:
    """What was tried as a table, and the arguments of the first."""
    lines = [f"by the estimates of {target.name}'s compiler, which are no measured times:"]
    for row in rows(ranked):
        speed = (
            f"{row['images_per_s']:10,.0f} images/s  {row['slower']:+4.0%} time" if row["fits"] else NO_FIT
        )
        lines.append(
            f"{speed}  {row['memory_per_device_bytes'] / GIB:7.2f} GiB  {row['flags'] or 'as given'}"
        )
    if not ranked[0].fits:
        return "\n".join([*lines, "nothing that was tried fits: a smaller batch, or more chips"])
    return "\n".join([*lines, f"best: {plan.flags(ranked[0].changes) or 'as given'}"])
