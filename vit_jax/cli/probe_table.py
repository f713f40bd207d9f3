"""The table of `probe`: what each probe reached, as text, Markdown or CSV."""

import csv
import io
from typing import Any

from vit_jax import paths
from vit_jax.cli import probe_head, suspects
from vit_jax.paths import Path

HEADER = ("probe", "features", "chosen", "held out", "eval split")
Row = tuple[str, str, str, str, str]


def rows(facts: dict[str, Any]) -> list[Row]:
    """The table: (probe, features, what was chosen, top-1 on the held-out part, on the eval split)."""
    seen, linear = facts["features"], facts["linear"]
    table: list[Row] = [(f"{k['k']}-NN, {k['vote']}", seen, "", "", f"{k['top1']:.2%}") for k in facts["knn"]]
    for few in facts["few_shot"]:
        name = f"few-shot, {few['shots']} a class"
        top1 = f"{few['top1']:.2%} ± {few['top1_std']:.2%}"
        table.append((name, seen, f"l2 {few['l2']:g}", f"{few['held_out']:.2%}", top1))
    for i, c in enumerate(linear["columns"]):
        chosen = f"lr {c['lr']:g}, decay {c['weight_decay']:g}"
        top1 = f"{linear['top1']:.2%}" if i == linear["chosen"] else ""
        table.append(("linear", c["features"], chosen, f"{c['held_out']:.2%}", top1))
    return table


def text(facts: dict[str, Any]) -> str:
    """The table with aligned columns, and which examples its figures come from."""
    table = [HEADER, *rows(facts)]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    n, linear = facts["examples"], facts["linear"]
    low, high = linear["top1_interval"]
    lines += [
        f"top-1; of the train split {n['train']:,} examples train heads, and {n['held_out']:,} choose them",
        f"the eval split has {n['eval']:,}; on it the best of {linear['heads']:,} linear heads is within "
        f"{low:.2%} .. {high:.2%} (95%, bootstrap)",
    ]
    lines += [suspects.text(facts["suspects"])] if "suspects" in facts else []
    lines += [probe_head.text(facts["head"])] if "head" in facts else []
    return "\n".join(lines)


def write(path: Path, facts: dict[str, Any]) -> None:
    """The table as Markdown or CSV. Raises UserError."""
    out, table = io.StringIO(), rows(facts)
    if path.suffix.lower() == ".csv":
        csv.writer(out).writerows([HEADER, *table])
    else:
        lines = [HEADER, ("---",) * len(HEADER), *table]
        out.writelines(f"| {' | '.join(line)} |\n" for line in lines)
    paths.write(path, out.getvalue())
