"""Joining the other processes of a run, and stopping together with them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

from vit_jax.errors import UserError

HEARTBEAT_S = 60  # after which the others end, if one process is gone


def join(address: tuple[str, int, int] | None) -> None:
    """Start jax.distributed if the environment names several processes, or at `address`; else do nothing.

    `address` is (host:port of process 0, which process this is, how many there are).
    TPU pods, SLURM and Open MPI are found by jax itself. To be called before any other use of jax. Raises
    UserError if the others cannot be met.
    """
    if address is None and not expected(os.environ):
        return
    coordinator, process_id, processes = address or (None, None, None)
    try:
        jax.distributed.initialize(coordinator, processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_S)
    except Exception as e:
        raise UserError(
            f"cannot join the other processes ({str(e).splitlines()[0]}): check --coordinator"
        ) from e


def expected(environment: os._Environ[str] | dict[str, str]) -> bool:
    """Whether this is one of several processes that a TPU pod, srun or mpirun has started."""
    hosts = environment["TPU_WORKER_HOSTNAMES"].split(",") if "TPU_WORKER_HOSTNAMES" in environment else []
    counts = [environment[k] for k in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE") if k in environment]
    # Without SLURM_STEP_ID the script of a batch job is a single process, whatever the job's size.
    started = "SLURM_STEP_ID" in environment or "OMPI_COMM_WORLD_SIZE" in environment
    return len(hosts) > 1 or (started and any(int(n) > 1 for n in counts))


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
