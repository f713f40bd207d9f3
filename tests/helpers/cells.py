"""Twenty steps of one run, laid out in many ways. As a program: one process of several that do so together.

python tests/helpers/cells.py CONFIG_FILE FSDP HOST:PORT PROCESS_ID PROCESSES

Process 0 prints JSON on its last line.
"""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import config
from vit_jax.data import loader, sources
from vit_jax.run import distributed
from vit_jax.run.setup import set_up
from vit_jax.training import mesh as meshes

STEPS = 20
# SGD: Adam would blow up the rounding of gradients that are 0 in exact arithmetic (the bias of keys).
# No dropout: a scan draws it otherwise.
FIELDS = [
    *("--config.optim.name=sgd", "--config.optim.lr=0.05", "--config.model.dropout=0"),
    *(f"--config.train.steps={STEPS}", "--config.train.log_every=1"),
]
FORMS = list(itertools.product((False, True), ("none", "full"), (1, 4)))  # scan, remat, micro-batches


def losses(path, mesh, scan, remat, parts):
    """(mean loss of each step, what the rows of each global batch were, the last state)."""
    cfg = config.from_command_line(str(path), [*FIELDS, f"--config.train.micro_batches={parts}"])
    cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, scan=scan, remat=remat))
    data = sources.open_splits(cfg.data)
    size = cfg.train.batch_size
    everywhere = NamedSharding(mesh, PartitionSpec())
    tell = jax.jit(
        lambda b: 1000 * b.image.astype(jnp.int32).sum((1, 2, 3)) + b.label, out_shardings=everywhere
    )
    with jax.set_mesh(mesh):
        setup = set_up(cfg, mesh, data)
        state, found, order = setup.init(), [], []
        rows = meshes.host_rows(size, mesh)
        batches = loader.TrainBatches(data.train, cfg.data, (8, 8), size, 0, STEPS, rows)
        for step in range(STEPS):
            batch = meshes.to_devices(batches[step], size, mesh)
            order.append(np.asarray(tell(batch)).tolist())
            state, _ = setup.step(state, batch, None)
            found.append(float(state.window.loss) / size)
    return found, order, state


def held_bytes(tree):
    """{device: bytes} of the shards of the arrays of a tree that this process holds."""
    held = {}
    for x in jax.tree.leaves(tree):
        for shard in x.addressable_shards:
            held[str(shard.device)] = held.get(str(shard.device), 0) + shard.data.nbytes
    return held


def main(path, fsdp, address, process_id, processes):
    """All forms on the mesh of all processes."""
    distributed.join((address, int(process_id), int(processes)))
    mesh = meshes.make("cpu", int(fsdp))
    done = [losses(Path(path), mesh, *form)[:2] for form in FORMS]
    if jax.process_index() == 0:
        print(json.dumps({"mesh": meshes.describe(mesh), "losses": done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
