"""What a compiled program's text says of its cost: the compiler's estimate of cycles, and its collectives."""

import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$", re.M)
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
OP_NAME = re.compile(r'op_name="([^"]*)"')
KERNEL = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')
CALLED = re.compile(r"\b(?:to_apply|calls)=%?([\w.-]+)")
LOOP = re.compile(r"\bwhile\(.*\bcondition=%?([\w.-]+), body=%?([\w.-]+)")
BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}|\b(?:true|false)_computation=%?([\w.-]+)")
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
# Between slices, by the hosts; of its results, an array and two marks.
SENT = re.compile(r'= \((.*?), u32\[\].* send\(.*_xla_megascale_transfer_type="(\w+)"')
CHANNEL = re.compile(r"\bchannel_id=(\d+)")
# Members of a group, in the three ways that XLA writes them.
LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)


class Collective(NamedTuple):
    """Exchanges of one kind in a step: over which axes of the mesh, how often, and bytes of the results.

    "slices" stands for what goes between the slices of a mesh of several.
    """

    kind: str
    axes: str
    times: int
    bytes: int


class Cost(NamedTuple):
    """`cycles` is the compiler's own estimate for a step on one chip, 0 where it makes none.

    So too where the program does not say how often a loop runs. What chips exchange has no cycles, nor have
    kernels of Pallas: the operations that they say of themselves are `kernel_flops`. `by_line` has the parts
    of `cycles` by the names that jax gives the lines of a model and of its derivatives.
    """

    cycles: int
    collectives: list[Collective]
    by_line: Counter[str]
    kernel_flops: int = 0


NO_COST = Cost(0, [], Counter())


def read(text: str, mesh_shape: dict[str, int]) -> Cost:
    """The cost of the optimised program `text` on a mesh; a loop's body counts as often as it runs."""
    bodies, entry = _computations(text)
    trips = {
        loop[2]: _trips(line, bodies, loop[1]) for line in text.splitlines() if (loop := LOOP.search(line))
    }
    often, cycles = Counter({entry: 1}), Counter()
    _walk(bodies, entry, often, {body: n or 1 for body, n in trips.items()}, cycles)
    # An exchange that is spread over several computations has one channel.
    found: dict[str, tuple[str, str, int, int]] = {}
    for name, lines in bodies.items():
        for line in lines if often[name] else ():
            exchange, sent, channel = COLLECTIVE.search(line), SENT.search(line), CHANNEL.search(line)
            if exchange:
                row = (exchange[2], _axes(line, mesh_shape), often[name], _bytes(exchange[1]))
            elif sent:
                row = (sent[2].lower().replace("_", "-"), "slices", often[name], _bytes(sent[1]))
            else:
                continue
            key = channel[1] if channel else line
            found[key] = max(found.get(key, row), row, key=lambda row: row[2:])
    rows: dict[tuple[str, str], Collective] = {}
    for kind, axes, times, size in found.values():
        before = rows.get((kind, axes), Collective(kind, axes, 0, 0))
        rows[kind, axes] = Collective(kind, axes, before.times + times, before.bytes + times * size)
    flops = sum(n * _kernel_flops(bodies[name]) for name, n in often.items() if name in bodies)
    total = 0 if None in trips.values() else cycles.total()
    return Cost(total, sorted(rows.values(), key=lambda row: -row.bytes), cycles, flops)


def _kernel_flops(lines: list[str]) -> int:
    return sum(int(n) for line in lines for n in KERNEL.findall(line))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """{name: its instructions} and the name of the entry."""
    bodies, entry, name = {}, "", None
    for line in text.splitlines():
        match = COMPUTATION.match(line)
        if match:
            name = match[2]
            bodies[name] = []
            entry = name if match[1] else entry
        elif name is not None:
            bodies[name].append(line)
    return bodies, entry


def _trips(line: str, bodies: dict[str, list[str]], condition: str) -> int | None:
    """How often a loop runs, as it says itself or by its condition: scans count from 0 up to a number."""
    if trips := TRIPS.search(line):
        return int(trips[1])
    lines = list(bodies.get(condition, ()))
    lines += [inner for line in lines for name in CALLED.findall(line) for inner in bodies.get(name, ())]
    bounds = {int(n) for n in BOUND.findall("\n".join(lines))}
    return bounds.pop() if len(bounds) == 1 and any("direction=LT" in line for line in lines) else None


def _walk(
    bodies: dict[str, list[str]],
    name: str,
    often: Counter[str],
    trips: dict[str, int],
    cycles: Counter[str] | None,
) -> None:
    """Add to `cycles` those of a computation and of what it runs, to `often` how often each runs."""
    times = often[name]
    for line in bodies.get(name, ()):
        estimate = CYCLES.search(line)
        if estimate and cycles is not None:
            op_name = OP_NAME.search(line)
            cycles[op_name[1] if op_name else ""] += times * int(estimate[1])
        for called in _called(line):
            before = often[called]
            often[called] = times * trips.get(called, 1)
            _walk(bodies, called, often, trips, None if estimate else cycles)  # a fusion's cycles are its own
            often[called] += before


def _called(line: str) -> list[str]:
    """Computations that an instruction runs; of a loop, its body, of branches, the first."""
    if loop := LOOP.search(line):
        return [loop[2]]
    branches = [n.strip().lstrip("%") for a, b in BRANCHES.findall(line) for n in (a or b).split(",")]
    return branches[:1] or CALLED.findall(line)


def _bytes(shapes: str) -> int:
    sizes = [
        math.prod(map(int, filter(None, dims.split(",")))) * BYTES.get(kind, 4)
        for kind, dims in ARRAY.findall(shapes)
    ]
    return sum(sizes)


def _axes(line: str, mesh: dict[str, int]) -> str:
    """Names of the axes of the mesh along which the members of a group lie."""
    places = np.unravel_index(_group(line, math.prod(mesh.values())), tuple(mesh.values()))
    along = [name for name, at in zip(mesh, places, strict=True) if len(set(at.tolist())) > 1]
    return ", ".join(along) or "none"


def _group(line: str, devices: int) -> list[int]:
    """The first group of devices that exchange; all if the instruction names none."""
    if listed := LISTED.search(line):
        return _numbers(listed[1])
    if iota := IOTA.search(line):
        ids = _ids(iota[3], iota[4])
        return ids.reshape(int(iota[1]), int(iota[2]))[0].tolist()
    if named := NAMED.search(line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        sizes = list(map(int, axes.values()))
        ids = _ids(named[2] or ",".join(map(str, sizes)), named[3]).reshape(sizes)
        chosen = re.findall(r"'(\w+)'", named[4])
        return ids[tuple(slice(None) if name in chosen else 0 for name in axes)].ravel().tolist()
    return list(range(devices))


def _ids(dims: str, order: str | None) -> np.ndarray:
    shape = _numbers(dims)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> list[int]:
    return list(map(int, text.split(",")))
