"""Joining the other processes of a run, and stopping together with them."""

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from vit_jax.errors import UserError, first_line
from vit_jax.run import rendezvous

HEARTBEAT_S = 120  # after which the others end, if one process is gone: by the watchdog, which names it
UNNAMED_S = 3 * HEARTBEAT_S  # the same, by jax: half of it at the least, as it asks twice in this time
APART_S = 3600  # that processes may be apart after compiling
JOIN_S = 300  # for all processes of a run to have started
# Names of jax's cluster environments.
CLUSTERS = {
    "gcetpu": "Cloud TPU metadata",
    "gketpu": "GKE",
    "slurm": "SLURM",
    "ompi": "Open MPI",
    "mpi4py": "mpi4py",
    "K8sCluster": "Kubernetes",
}


_barriers = itertools.count()  # each barrier has a name of its own


class Cluster(NamedTuple):
    """Where the processes of a run meet, which of how many this is, and who says so."""

    coordinator: str  # HOST:PORT of process 0
    processes: int
    process_id: int
    found_by: str
    method: str | None = "deactivate"  # jax's name of the detection, which also tells a process its devices


def join(address: tuple[str, int, int] | None, *, timeout_s: int = JOIN_S) -> str:
    """Meet the other processes of the run at `address`, or where jax's own detection finds a cluster.

    `address` is (host:port of process 0, which process this is, how many there are). Returns a line that says
    what was found. To be called before any other use of jax. Raises UserError if the others are not there
    within `timeout_s` seconds, naming who is missing.
    """
    if address is not None:
        coordinator, process_id, processes = address
        cluster = Cluster(coordinator, processes, process_id, "--coordinator")
    else:
        cluster = detect(timeout_s)
    if cluster is None or cluster.processes == 1:
        why = f"{cluster.found_by} names one" if cluster else f"no {', '.join(CLUSTERS.values())} found"
        return f"one process: {why}"
    rendezvous.meet(cluster.coordinator, cluster.process_id, cluster.processes, timeout_s)
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process_id,
            cluster_detection_method=cluster.method,
            initialization_timeout=timeout_s,
            heartbeat_timeout_seconds=UNNAMED_S,
            partition_index=_slice(),
        )
    except Exception as e:
        raise UserError(f"cannot join the other processes ({first_line(e)}): check {cluster.found_by}") from e
    return f"{cluster.processes} processes, found by {cluster.found_by}"


def detect(timeout_s: int) -> Cluster | None:
    """The cluster that jax's own detection finds. Raises UserError where it begins to, but cannot go on."""
    # Not public, but to be asked rather than repeated; `join` needs to know the count before it waits.
    from jax._src.clusters import ClusterEnv

    kinds: Any = ClusterEnv._cluster_types
    try:
        kind = next((k for k in kinds if not k.opt_in_only_method and k.is_env_present()), None)
        kind = kind or _mpi(kinds)
        if kind is None:
            return None
        name = CLUSTERS.get(kind.name or kind.__name__, kind.__name__ or "")
        processes, port = kind.get_process_count(), os.environ.get("JAX_COORDINATOR_PORT")
        if processes == 1:
            return Cluster("", 1, 0, name)
        coordinator = kind.get_coordinator_address(timeout_secs=timeout_s, override_coordinator_port=port)
        return Cluster(coordinator, processes, kind.get_process_id(), name, kind.name or None)
    except UserError:
        raise
    except Exception as e:  # of the metadata server, of another package, of what the environment says
        raise UserError(
            f"the cluster cannot be asked for its processes ({type(e).__name__}: {first_line(e)}): "
            "give --coordinator, --process_id and --processes"
        ) from e


def _mpi(kinds: Any) -> Any:
    """MPI launchers that jax does not know by their environment are asked by mpi4py. Raises UserError.

    MPICH and those made from it set PMI_SIZE; of Open MPI, jax knows the versions before 5.
    """
    size = os.environ.get("PMI_SIZE") or os.environ.get("OMPI_COMM_WORLD_SIZE") or "1"
    if not size.isdigit() or int(size) < 2:
        return None
    kind = next(k for k in kinds if k.name == "mpi4py")
    if not kind.is_env_present():
        raise UserError(f"an MPI launcher started {size} processes: pip install mpi4py, which they meet by")
    return kind


def _slice() -> int | None:
    """Which slice of a multislice TPU job this is, where the environment says so."""
    number = os.environ.get("MEGASCALE_SLICE_ID", "")
    return int(number) if number.isdigit() else None


def wait_for_all() -> None:
    """Barrier across processes that may be minutes apart, as after compiling.

    To be called before their first collective: on CPUs that waits for the others 30 s, and fails. A process
    that is gone ends this by its heartbeat.
    """
    if (joined := client()) is not None:
        joined.wait_at_barrier(f"vit_jax {next(_barriers)}", timeout_in_ms=APART_S * 1000)


def client() -> Any:
    """jax's client of the coordination service that the processes joined, or None."""
    from jax._src import distributed as joined  # not public: public barriers are collectives themselves

    return joined.global_state.client


@contextmanager
def stop_signals() -> Iterator[Callable[[int], int | None]]:
    """A function of the step: the signal that ends the run before it, at the same step in all processes.

    One process catches SIGTERM and SIGINT itself, in its main thread alone, as Python does; a second signal
    acts as usual. Several processes agree through jax, which catches SIGTERM.
    """
    if jax.process_count() > 1:
        yield lambda step: signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: None
        return
    caught: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield lambda step: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
