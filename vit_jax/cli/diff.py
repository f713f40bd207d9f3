"""Where two runs part, by how much, and what was different before: config, code, machine, weights or data."""

import json
from collections.abc import Callable
from typing import Any

from vit_jax import paths
from vit_jax.cli.common import make_parser, run_command
from vit_jax.errors import UserError
from vit_jax.paths import Path

EXAMPLES = """examples:
  python -m vit_jax.cli.diff runs/b16 runs/b16_again
  python -m vit_jax.cli.diff runs/b16 runs/b16_again --json

The first number that is not the same to its last digit is where the runs part. Each line above it is what
differed when they began; a line may follow from one before it, as another seed gives other weights. The exit
code is 0 for runs with the same numbers, 1 for others, or if there is no number to compare.
"""
KINDS = ("config", "code", "versions", "devices", "weights", "data")  # a later one may follow from an earlier
SHOWN = 3
UNTIMED = ("train/", "eval/")
SPEED = "images_per_s"


def main() -> int:
    """Parse the command line, read both folders, print; returns the exit code."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("run", help="work directory of a run")
    parser.add_argument("other", help="another")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()

    runs = [_read(args.run), _read(args.other)]
    facts = {"differs": begun(*runs), "curves": parted(*(run["metrics"] for run in runs))}
    print(json.dumps(facts) if args.json else text(facts))
    return 0 if facts["curves"]["same"] and facts["curves"]["compared"] else 1


def begun(run: dict[str, Any], other: dict[str, Any]) -> dict[str, list[str]]:
    """{kind: lines} of what differed when the runs began, without the kinds that are the same."""
    from vit_jax.config import differences

    was, now = run["origin"], other["origin"]
    if was is None or now is None:
        found = {"config": differences(run["config"], other["config"])}
        untold = [f"{name} has no origin.json" for name, o in (("one", was), ("the other", now)) if o is None]
        found["code"] = [f"unknown, as are weights and data: {' and '.join(untold)}"]
        return {kind: lines for kind, lines in found.items() if lines}
    found = {
        "config": differences(run["config"], other["config"]),
        "code": _code(was, now),
        "versions": _changed(was["versions"], now["versions"]),
        "devices": _changed(*({"devices": o["devices"]} for o in (was, now))),
        "weights": _weights(was["params"], now["params"]),
        "data": _data(was, now),
    }
    return {kind: found[kind] for kind in KINDS if found[kind]}


def parted(metrics: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """The first step with another number, which one, and the last of both; `same` if there is none.

    Speeds and times are left out, as are steps that one run has not reported.
    """
    curves, others = _by_step(metrics), _by_step(other)
    common = [key for key in curves if key in others]
    first = next((key for key in common if curves[key] != others[key]), None)
    found: dict[str, Any] = {
        "same": first is None,
        "compared": len(common),
        "steps": [max((step for step, _ in c), default=0) for c in (curves, others)],
    }
    if first:
        step, name = first
        found["first"] = {"step": step, "name": name, "values": [curves[first], others[first]]}
        found["same_until"] = max((s for s, _ in common if s < step), default=0)
        last = {name: step for step, name in common if name == first[1] or name.startswith("eval/")}
        found["last"] = [
            {"step": s, "name": n, "values": [curves[s, n], others[s, n]]}
            for n, s in last.items()
            if curves[s, n] != others[s, n]
        ]
    return found


def text(facts: dict[str, Any]) -> str:
    """The facts to read, the conclusion last."""
    lines = [f"{kind:9} {line}" for kind, found in facts["differs"].items() for line in found] or [
        "no difference is known of how they began"
    ]
    curves = facts["curves"]
    if not curves["compared"]:
        return "\n".join([*lines, "curves    no step was reported by both"])
    if curves["same"]:
        a, b = curves["steps"]
        ends = f", to step {a}" if a == b else f"; one is at step {a}, the other at {b}"
        return "\n".join(
            [*lines, f"curves    the same to the last digit in {curves['compared']} numbers{ends}"]
        )
    lines += [f"last      {_pair(row)}" for row in curves["last"]]
    cause = next(iter(facts["differs"]), None)
    because = (
        f"look at the {cause} first: {facts['differs'][cause][0]}"
        if cause
        else "nothing that is recorded explains it: see if one of them repeats itself on its machine"
    )
    return "\n".join(
        [*lines, f"they part at {_pair(curves['first'])}, same until step {curves['same_until']}; {because}"]
    )


def _read(ref: str) -> dict[str, Any]:
    """Config, origin and metrics of a work directory. Raises UserError if it is not one."""
    from vit_jax.config import parse_stored
    from vit_jax.run.workdir import Workdir, metrics_in

    folder = Workdir(paths.of(ref))
    with paths.reached(folder.path):
        if not folder.config.is_file():
            raise UserError(f"{ref} is no work directory of a run: it has no {folder.config.name}")
        return {
            "config": _parsed(folder.config, lambda text: parse_stored(json.loads(text))),
            "origin": _parsed(folder.origin, json.loads) if folder.origin.is_file() else None,
            "metrics": metrics_in(folder.metrics),
        }


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    """What a file of a run holds. Raises UserError if it is damaged."""
    try:
        return parse(path.read_text())
    except ValueError as e:
        raise UserError(f"{path} cannot be read as a file of a run: {e}") from e


def _by_step(metrics: list[dict[str, Any]]) -> dict[tuple[int, str], Any]:
    """{(step, name): value} in the order of the steps; NaN as a text, which equals itself."""
    return {
        (row["step"], name): value if value == value else "nan"
        for row in metrics
        for name, value in row.items()
        if name.startswith(UNTIMED) and not name.endswith(SPEED)
    }


def _code(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    lines = _changed(*({"commit": o["commit"]} for o in (was, now)))
    return lines or (["uncommitted changes differ"] if was["diff"] != now["diff"] else [])


def _changed(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = dict.fromkeys([*was, *now])
    return [f"{n}: {was.get(n, 'none')} -> {now.get(n, 'none')}" for n in names if was.get(n) != now.get(n)]


def _weights(was: dict[str, int], now: dict[str, int]) -> list[str]:
    other = [name for name in dict.fromkeys([*was, *now]) if was.get(name) != now.get(name)]
    shown = ", ".join(other[:SHOWN]) + (", ..." if len(other) > SHOWN else "")
    count = len(was.keys() | now.keys())
    return [f"{len(other)} of {count} initial arrays differ: {shown}"] if other else []


def _data(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How the first batches differ: in their examples, or in what was read of them."""
    if was["examples"] != now["examples"]:
        pairs = zip(was["examples"], now["examples"], strict=False)
        other = [pair for pair in pairs if pair[0] != pair[1]]
        sizes = {len(o["examples"]) for o in (was, now)}
        if not other:
            return [f"the first batch has {' and '.join(map(str, sorted(sizes)))} examples"]
        a, b = other[0]
        return [f"the first batch has other examples: {len(other)} rows, the first {a} -> {b}"]
    rows = zip(was["examples"], was["rows"], now["rows"], strict=False)
    other = [example for example, a, b in rows if a != b]
    return (
        [f"{len(other)} examples of the first batch have other pixels or labels, such as {other[0]}"]
        if other
        else []
    )


def _pair(row: dict[str, Any]) -> str:
    a, b = row["values"]
    apart = (
        f" ({abs(a - b) / max(abs(a), abs(b)):.2g} apart)"
        if isinstance(a, float) and isinstance(b, float)
        else ""
    )
    return f"step {row['step']}, {row['name']} {a!r} and {b!r}{apart}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
