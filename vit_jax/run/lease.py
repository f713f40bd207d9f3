"""Who trains in a folder of a bucket: one process, as long as it says so.

A claim is an object that can be created once, by one process alone: claims/1, claims/2, ... The highest is
the one that holds. Its owner writes it anew every few seconds; one that stays the same for LEASE_S is of a
process that is gone, and the next number may be claimed. An owner that finds a higher number has lost.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from vit_jax import paths
from vit_jax.errors import UserError
from vit_jax.paths import Path

BEAT_S, LEASE_S = 15.0, 60.0
LOOK_S = 2.0  # between looks at another's claim
_mine: set[str] = set()  # that this process holds


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the claim of a run's `folder`; one that may be of a process that is gone is waited out first.

    Raises UserError while another process holds it. A process that loses it ends at once.
    """
    number, text = _highest(folder)
    if number and not json.loads(text)["released"]:
        _wait_out(folder, number, text)
    mine = folder / str(number + 1)
    if not paths.create(mine, _claim(0)):
        raise _taken(folder)
    for n in range(1, number + 1):
        (folder / str(n)).unlink(missing_ok=True)
    _mine.add(str(mine))
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(mine, ended), daemon=True, name="lease")
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        _mine.remove(str(mine))
        mine.write_bytes(_claim(0, released=True))


def _highest(folder: Path) -> tuple[int, str]:
    """The number of the claim that holds, and what is in it; (0, "") where nobody was before."""
    number = max((int(name) for name in paths.names_in(folder) if name.isdigit()), default=0)
    return (number, (folder / str(number)).read_text()) if number else (0, "")


def _wait_out(folder: Path, number: int, text: str) -> None:
    """Wait until the claim is one of a process that is gone. Raises UserError if its owner lives."""
    owner, until = json.loads(text), time.monotonic() + LEASE_S
    if _gone(owner, held_here=str(folder / str(number)) in _mine):
        return
    who = f"process {owner['pid']} of {owner['host']}"
    print(f"{folder.parent} is claimed by {who}: waiting {LEASE_S:.0f} s for a sign of life", flush=True)
    while time.monotonic() < until:
        time.sleep(LOOK_S)
        if _highest(folder) != (number, text):
            raise _taken(folder)


def _gone(owner: dict[str, Any], *, held_here: bool) -> bool:
    """Whether the owner was a process of this very system, and is no more."""
    if {k: owner[k] for k in ("host", "boot", "space")} != _system():
        return False
    if owner["pid"] == os.getpid():
        return not held_here  # else it was held by the program that this process was before, see cpu.py
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    return False


def _beat(mine: Path, ended: threading.Event) -> None:
    number = int(mine.name)
    for beat in range(1, sys.maxsize):
        if ended.wait(BEAT_S):
            return
        with contextlib.suppress(Exception):  # a bucket that does not answer is asked again
            if _highest(mine.parent)[0] != number:
                _end(mine)
            mine.write_bytes(_claim(beat))


def _end(mine: Path) -> NoReturn:
    # Not by an exception: the thread that trains may wait for other processes.
    print(
        f"error: another process has claimed {mine.parent.parent}: this one gave no sign for {LEASE_S:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _claim(beat: int, *, released: bool = False) -> bytes:
    return json.dumps({**_system(), "pid": os.getpid(), "beat": beat, "released": released}).encode()


def _system() -> dict[str, str]:
    """Host, boot and PID namespace: the same for two processes that can see each other; "" where unknown."""
    return {"host": socket.gethostname(), "boot": _told("/proc/sys/kernel/random/boot_id"), "space": _space()}


def _told(file: str) -> str:
    try:
        with open(file) as opened:
            return opened.read().strip()
    except OSError:
        return ""


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _taken(folder: Path) -> UserError:
    return UserError(f"another process trains in {folder.parent}: use another --workdir, or wait")
