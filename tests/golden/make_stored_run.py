"""Write stored_run.tar.gz: a run of this version as if killed after step 10 of 20, and what it comes to.

    PYTHONPATH=.:tests/helpers python tests/golden/make_stored_run.py

It is made once for a version, from a clean checkout, and never again: later versions must load it and go on
with it. `expected.json` in it has the logits of the first four evaluation images at step 10, and the losses
that the same run, not stopped, ends with.
"""

import json
import os
import tarfile
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
from tiny_run import tiny

import vit_jax
from vit_jax import config
from vit_jax.data import sources
from vit_jax.training.step import normalise

KEPT = ("config.json", "metrics.jsonl", "log.txt", "origin.json", "checkpoints/10")


def main():
    cfg = tiny(steps=20, eval_every=10, checkpoint_every=10, log_every=5, keep=2)
    cfg = config.apply(cfg, ["--config.model.depth=1"])
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        whole = vit_jax.train(cfg, "run")
        lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
        expected = {
            "logits": logits("run/checkpoints/10").tolist(),
            "train/loss": next(
                row["train/loss"] for row in lines if row["step"] == 20 and "train/loss" in row
            ),
            "eval/loss": whole.metrics["loss"],
        }
        Path("expected.json").write_text(json.dumps(expected))
        with tarfile.open(Path(__file__).parent / "stored_run.tar.gz", "w:gz") as packed:
            for name in ("expected.json", *(f"run/{kept}" for kept in KEPT)):
                packed.add(name, filter=nobody)


def nobody(member):
    """Without the names of who packed it."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def logits(ref):
    """float32 [4, 10] of the first evaluation images."""
    loaded, digits = vit_jax.load(ref), sources.digits(train=False)
    image_bhwc = np.stack([digits.get(i)[0] for i in range(4)])
    return np.asarray(
        loaded.model.apply({"params": loaded.params}, normalise(image_bhwc, loaded.spec.preprocess))
    )


if __name__ == "__main__":
    main()
