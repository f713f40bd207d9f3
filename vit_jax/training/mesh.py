"""Which devices, how arrays are laid out over them, and which rows of a batch this host feeds.

The mesh has two axes: the batch is split over both, parameters and optimizer state over `fsdp` alone.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.data.loader import Batch, rows_of
from vit_jax.errors import UserError
from vit_jax.models.stack import STACK
from vit_jax.sections import Spec, seen_size

SMALLEST_SPLIT = 1024  # elements; smaller arrays are kept whole, as moving them costs more than it saves


def make(device: str, fsdp: int) -> Mesh:
    """The mesh over all devices of a kind ("any": the default one). Raises UserError if there is none."""
    try:
        devices = jax.devices() if device == "any" else jax.devices(device)
    except RuntimeError as e:
        found = jax.default_backend()
        raise UserError(
            f"device={device} was asked for, but jax finds only {found}: install its extra"
        ) from e
    return over(devices, fsdp)


def over(devices: Sequence[Any], fsdp: int) -> Mesh:
    """The mesh over `devices`; those of one slice are neighbours on it, and `fsdp` stays within a slice.

    Raises UserError if `fsdp` does not divide them.
    """
    together = near(devices)
    slices = len(devices) // together
    if together % fsdp:
        where = " of a slice" if slices > 1 else ""
        raise UserError(f"fsdp={fsdp} does not divide the {together} devices{where}")
    axes = {"axis_names": ("data", "fsdp"), "axis_types": (AxisType.Auto,) * 2}
    shape = (together // fsdp, fsdp)
    if slices == 1:
        return jax.make_mesh(shape, devices=devices, **axes)
    grid = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1), devices)
    return Mesh(grid, **axes)


def near(devices: Sequence[Any]) -> int:
    """How many of `devices` a slice has: the most that `fsdp` can be."""
    return len(devices) // len({getattr(device, "slice_index", 0) for device in devices})


def describe(mesh: Mesh) -> str:
    """Such as `8 x TPU v4 (data=8, fsdp=1), 1 process`."""
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    processes = jax.process_count()
    return f"{mesh.size} x {kind} ({axes}), {processes} process{'es' if processes > 1 else ''}"


def check_batch(name: str, batch_size: int, mesh: Mesh, *, parts: int = 1) -> None:
    """Raise UserError unless the devices can share each of the micro-batches evenly."""
    unit = mesh.size * parts
    if batch_size % unit:
        near = max(batch_size // unit, 1) * unit
        what = f"{mesh.size} devices" if parts == 1 else f"{mesh.size} devices x {parts} micro-batches"
        raise UserError(f"{name}={batch_size} is not a multiple of the {what}: use {near}")


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding per leaf: the largest dimension that `fsdp` divides is split, small arrays are whole.

    Layers in one array are laid out as each of them would be.
    """

    def sharding(path: tuple[Any, ...], x: Any) -> NamedSharding:
        layers = int(any(getattr(key, "key", None) == STACK for key in path))
        spec = _spec(x.shape[layers:], mesh.shape["fsdp"])
        return NamedSharding(mesh, PartitionSpec(*(None,) * layers, *spec))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def everywhere(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def host_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """Indices into the global batch of the rows that this host's devices hold, in ascending order."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index[0]] for index in held.values() if index is not None]
    return np.unique(np.concatenate(rows)).tolist()


def to_devices(batch: Batch, batch_size: int, mesh: Mesh) -> Batch:
    """This host's rows to global arrays split over the devices."""
    sharding = batch_sharding(mesh)
    put = lambda x: jax.make_array_from_process_local_data(sharding, x, (batch_size, *x.shape[1:]))
    return batch.map(put)


def batch_like(batch_size: int, spec: Spec, mesh: Mesh) -> Any:
    """Shapes and layout of what `to_devices` makes."""
    room = rows_of(seen_size(spec.model, spec.preprocess), 1, spec.preprocess.channels)
    sharding = batch_sharding(mesh)
    like = lambda shape, dtype: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)
    label = like((spec.model.classes,), np.uint8) if spec.multi_label else like((), np.int32)
    image: Any = jax.tree.map(lambda x: like(x.shape[1:], x.dtype), room)
    return Batch(image, label, like((), np.float32))  # pyright: ignore


def _spec(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    if np.prod(shape) < SMALLEST_SPLIT or parts == 1:
        return PartitionSpec()
    for i in sorted(range(len(shape)), key=lambda i: -shape[i]):
        if shape[i] % parts == 0:
            return PartitionSpec(*("fsdp" if j == i else None for j in range(len(shape))))
    return PartitionSpec()
