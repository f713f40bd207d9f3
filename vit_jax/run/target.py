"""TPU slices that are not here: their devices, by libtpu, and what is published of their chips."""

import math
import os
import re
from importlib.util import find_spec
from typing import Any, NamedTuple

from vit_jax.errors import UserError
from vit_jax.run.program import Cost


class Chip(NamedTuple):
    """Published figures of a chip: cloud.google.com/tpu/docs/system-architecture-tpu-vm."""

    peak_flops: float  # bfloat16, a second
    clock_hz: float  # of the cycles that the compiler counts: peak / (2 * multipliers)
    hbm_gib: float  # that a program may use, by the compiler's own message
    cores: int  # that the name of a slice counts for each chip
    sizes: dict[int, str]  # chips: topology

    def seconds(self, cost: Cost) -> float:
        """The estimate of a step: the compiler's cycles, and our kernels' products at the chip's rate."""
        return cost.cycles / self.clock_hz + cost.kernel_flops / self.peak_flops


FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
    **{4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"},
    **{512: "8x8x8", 1024: "8x8x16"},
}
CHIPS = {
    "v4": Chip(275e12, 275e12 / (2 * 8 * 128**2), 30.75, 2, CUBES),
    "v5e": Chip(197e12, 197e12 / (2 * 4 * 128**2), 15.75, 1, FLAT),
    "v5p": Chip(459e12, 459e12 / (2 * 8 * 128**2), 95.74, 2, CUBES),
    "v6e": Chip(918e12, 918e12 / (2 * 4 * 256**2), 31.25, 1, FLAT),
}
NAME = re.compile(r"(?:(\d+)x)?(v\d\w?)-(\d+)")


class Target(NamedTuple):
    """Such as 2xv5e-16: two slices of sixteen chips."""

    name: str
    chip: Chip
    devices: list[Any]


def prepare() -> None:
    """Have jax use the CPU, and libtpu ask no metadata server. To be called before jax is imported."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # of the machine that libtpu believes to run on
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is used: plans may be made side by side
    }


def find(name: str) -> Target:
    """The slice called `name`. Raises UserError for an unknown one, and where libtpu is missing."""
    match = NAME.fullmatch(name)
    kind = CHIPS.get(match[2]) if match else None
    if match is None or kind is None:
        raise UserError(f"--target={name} is no slice known here: give {', '.join(CHIPS)}, such as v5e-16")
    slices, chips = int(match[1] or 1), int(match[3]) / kind.cores
    if chips not in kind.sizes or slices < 1:
        sizes = ", ".join(str(n * kind.cores) for n in kind.sizes)
        raise UserError(f"--target={name}: slices of {match[2]} have the sizes {sizes}")
    if find_spec("libtpu") is None:
        raise UserError(f"--target={name} needs the TPU compiler: pip install 'vit_jax[aot]'")
    return Target(name, kind, _devices(match[2], kind.sizes[int(chips)], slices))


def _devices(kind: str, shape: str, slices: int) -> list[Any]:
    from jax.experimental import topologies  # after `prepare`

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip, as on the machine itself
    if math.prod(map(int, shape.split("x"))) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{kind}:{shape}"
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
