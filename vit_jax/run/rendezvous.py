"""A first meeting of the processes of a run, over TCP, that ends in time and can say who is missing.

jax's own way of connecting kills a process that waits in vain, with a stack of C++ and without a name.
"""

import contextlib
import json
import socket
import time

from vit_jax.errors import UserError

RETRY_S = 0.5
REPLY_S = 30  # for process 0 to answer when the time is over
LONGEST = 64  # bytes of what a process says


def meet(address: str, process_id: int, processes: int, timeout_s: float) -> None:
    """Return once all `processes` have called this with the `address` (host:port) of process 0.

    Raises UserError after `timeout_s` seconds, in each process that is there, naming those that are not.
    """
    end = time.monotonic() + timeout_s
    host, _, port = address.rpartition(":")
    if process_id == 0:
        problem = _gather(int(port), processes, end)
    else:
        problem = _call(host.strip("[]"), int(port), process_id, end)
    if problem:
        raise UserError(f"{problem} after {timeout_s:g} s: start all processes, each with its own number")


def _gather(port: int, processes: int, end: float) -> str:
    """Wait for all others, answer them, and return what is wrong: empty if they are all there."""
    callers: list[socket.socket] = []
    there, twice = {0}, set[int]()
    try:
        with _listen(port) as server, contextlib.ExitStack() as stack:
            while len(there) < processes and not twice and (left := end - time.monotonic()) > 0:
                server.settimeout(left)
                with contextlib.suppress(OSError):  # nobody in time, or a caller that went away
                    caller = stack.enter_context(server.accept()[0])
                    number = _read_number(caller)
                    if number is None or not 0 < number < processes:
                        continue
                    twice |= {number} & there
                    there.add(number)
                    callers.append(caller)
            problem = _absent(sorted(set(range(processes)) - there), processes)
            if twice:
                problem = f"process {min(twice)} of {processes} is there twice"
            for caller in callers:
                with contextlib.suppress(OSError):
                    caller.sendall(json.dumps(problem).encode() + b"\n")
    except OSError as e:
        raise UserError(f"process 0 cannot listen on port {port} ({e.strerror}): choose another port") from e
    return problem


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _read_number(caller: socket.socket) -> int | None:
    caller.settimeout(REPLY_S)
    said = caller.makefile("rb").readline(LONGEST).strip()
    return int(said) if said.isdigit() else None


def _absent(missing: list[int], processes: int) -> str:
    if not missing:
        return ""
    names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    what, verb = ("process", "is") if len(missing) == 1 else ("processes", "are")
    return f"{what} {names} of {processes} {verb} missing"


def _call(host: str, port: int, process_id: int, end: float) -> str:
    """Tell process 0 that this one is there, and return what it answers."""
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as server:
                server.sendall(f"{process_id}\n".encode())
                server.settimeout(max(end - time.monotonic(), 0) + REPLY_S)
                return json.loads(server.makefile("rb").readline())
        except (OSError, ValueError):  # not there yet, or ended before it answered
            time.sleep(RETRY_S)
    return f"process 0 at {host}:{port} does not answer"
