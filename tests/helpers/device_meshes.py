"""Meshes of the CPU devices that these tests have."""

import jax


def mesh_of(devices, fsdp=1):
    """The mesh of the first `devices` of them, over `fsdp` of which parameters are split."""
    axes = {"axis_types": (jax.sharding.AxisType.Auto,) * 2, "devices": jax.devices()[:devices]}
    return jax.make_mesh((devices // fsdp, fsdp), ("data", "fsdp"), **axes)
