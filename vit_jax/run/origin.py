"""What a run began with, kept in its folder so that two runs can be compared."""

import json
import zlib
from typing import Any

import jax
from jax.sharding import Mesh

from vit_jax import paths
from vit_jax.data.loader import Batch
from vit_jax.patches import Patches
from vit_jax.run import provenance
from vit_jax.run.workdir import Workdir
from vit_jax.training import mesh as meshes
from vit_jax.weights.formats import orbax


def write(folder: Workdir, mesh: Mesh, params: Any, ids: list[int], batch: Batch) -> None:
    """Keep code, versions and devices, a digest of each initial parameter, and of the first batch.

    `ids` are the examples of the whole batch, `batch` the rows of this process. All processes call this.
    """
    digests = orbax.digest(params)
    if jax.process_index() == 0:
        images = batch.image.pixels if isinstance(batch.image, Patches) else batch.image
        rows = zip(images, batch.label, strict=True)
        crc = [zlib.crc32(label.tobytes(), zlib.crc32(image.tobytes())) for image, label in rows]
        known = {"devices": meshes.describe(mesh), "params": digests, "examples": ids, "rows": crc}
        paths.write(folder.origin, json.dumps(provenance.collect() | known))
