"""What a run was, from its checkpoint alone."""

import sys

from vit_jax import paths
from vit_jax.config import parse_stored
from vit_jax.run import provenance
from vit_jax.sections import Config
from vit_jax.weights.formats import orbax


def read_config(ref: str) -> Config:
    """The config of a run or of one step of it; says on stderr where code and versions differ.

    Raises UserError if there is no checkpoint.
    """
    record = orbax.read_record(orbax.step_dir(paths.of(ref)))
    was, now = ({"commit": r["commit"][:12], **r["versions"]} for r in (record, provenance.collect()))
    changed = [f"{name} {old} -> {now[name]}" for name, old in was.items() if now[name] != old]
    if changed:
        print(f"note: {ref} was made with other code or versions: {', '.join(changed)}", file=sys.stderr)
    return parse_stored(record["config"])
