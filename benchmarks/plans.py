"""Every config of configs/ on TPUs that are not here, as a table: docs/plans.md.

    python benchmarks/plans.py
    python benchmarks/plans.py vit_h14 --target v5e-256

Each config is compiled by `train.py --plan --target`, scanned, with the remedies that it proposes up to one
that fits: a minute or more each time. Needs the extra aot, and no TPU. All figures are the compiler's.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GIB = 2**30
SCANNED = "--config.train.scan=true"  # a step compiles as quickly at any depth
SIZES = ("--examples", "1438", "--classes", "10")  # of the digits, whose data is not read for a plan
HEAD = """| config | flags | GiB a chip | ms a step | images/s | hours |
|---|---|---|---|---|---|"""


def planned(name: str, target: str) -> dict[str, Any]:
    """What `--plan` says of configs/NAME.py."""
    command = [sys.executable, "train.py", "--config", f"configs/{name}.py", "--plan", "--target", target]
    command += ["--json", SCANNED, *(SIZES if name == "quickstart" else ())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def row(name: str, plan: dict[str, Any]) -> str:
    """A line of the table: the config as given if it fits, else with the first remedy that does."""
    tries = [{**plan, **(plan["estimate"] or {}), "change": ""}, *plan["remedies"]]
    if not tries[-1]["fits"]:
        return f"| {name} | nothing that was tried fits | | | | |"
    best = tries[-1]
    flags, gib = best["change"] and f"`{best['change']}`", best["memory_per_device_bytes"] / GIB
    cells = [name, flags, f"{gib:.2f}", f"{best['step_s'] * 1e3:,.1f}"]
    cells += [f"{best['images_per_s']:,.0f}", f"{plan['steps'] * best['step_s'] / 3600:,.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = {path.stem for path in (ROOT / "configs").glob("*.py")}
    every = sorted(names - {"from_init"})  # that one wants weights
    parser.add_argument("names", nargs="*", metavar="CONFIG", help="as vit_b16 (default: all of configs/)")
    parser.add_argument("--target", default="v5e-16", help="as of train.py (default: v5e-16)")
    args = parser.parse_args()
    print(HEAD)
    for name in args.names or every:
        print(row(name, planned(name, args.target)), flush=True)


if __name__ == "__main__":
    main()
