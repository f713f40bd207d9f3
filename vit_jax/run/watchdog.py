"""Ends all processes of a run when one of them is stuck, stopped or gone, in one line that says which.

Without that the others wait for it in a collective for ever. Each process tells process 0 where it stands,
through jax's coordination service; process 0 judges, and all processes hear of it. Two threads per process:
one talks, and may hang with the network; the other judges, and ends the process whatever the others do.
"""

import datetime
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import jax

from vit_jax.errors import first_line
from vit_jax.run import distributed
from vit_jax.run.clock import Clock

POLL_S = 5  # a tenth of the limit, if that is less
# On busy machines a process may not be heard of for half a minute. The other half is for all to hear and end.
SILENT_S = distributed.HEARTBEAT_S / 2
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed
# What a process does, in words. No limit holds for the first two: some data and programs take long.
DOING = {
    "starting": "starting",
    "compiling": "compiling",
    "restoring": "reading a checkpoint",
    "steps": "waiting for the devices",
    "data": "waiting for data",
    "evaluation": "evaluating",
    "saving": "saving",
}
UNLIMITED = ("starting", "compiling")
_watches = itertools.count()  # each run of a process has keys of its own


class Standing(NamedTuple):
    """Where a process is: `pulse` grows while it can run at all, `moves` as its Clock counts them."""

    pulse: int = 0
    moves: int = 0
    step: int = 0
    doing: str = "starting"
    still_s: float = 0.0  # without a move
    ended: str | None = None  # the error that ended it; empty: without one; None: it runs


class Ruling(NamedTuple):
    """What process 0 tells the others: `line`, if they must end, and whether it has left the run."""

    pulse: int = 0
    line: str = ""
    over: bool = False


@contextmanager
def watch(clock: Clock, stall_minutes: float, *, own_process: bool) -> Iterator[None]:
    """Ends all processes, with exit code 75, once one makes no move for `stall_minutes`; 0: never.

    So does one that is stopped or killed, within `distributed.HEARTBEAT_S`, and one whose run ends in an
    error that the others do not have. A process alone is ended if it is the run's `own_process`; else
    stderr says that it is stuck. To be entered by all processes, in any order.
    """
    if not stall_minutes:
        yield
        return
    watchdog = _Watchdog(clock, 60 * stall_minutes, own_process)
    try:
        yield
    except BaseException as e:
        if _may_be_another(e):
            watchdog.explain()
        watchdog.close(first_line(e))
        raise
    watchdog.close("")


def judge(standings: dict[int, Standing], silent_s: dict[int, float], processes: int, limit_s: float) -> str:
    """What is wrong with a process of those that were heard of, or an empty string.

    `silent_s` is for how long each has not been heard of. Of several that do not move, the one that has come
    least far holds up the others.
    """
    for i, at in standings.items():
        if at.ended:
            return f"process {i} of {processes} has ended {_place(at)} ({at.ended})"
    running = {i: at for i, at in standings.items() if at.ended is None}
    for i, at in running.items():
        if silent_s[i] > min(SILENT_S, limit_s):
            return _silent(i, processes, silent_s[i], at)
    if not running:
        return ""
    i, at = min(running.items(), key=lambda one: (one[1].moves, -one[1].still_s))
    if at.still_s <= limit_s or at.doing in UNLIMITED:
        return ""
    who = f"process {i} of {processes}" if processes > 1 else "this process"
    return f"{who} is stuck {_place(at)}: {DOING[at.doing]} since {_ago(at.still_s)}"


def _silent(i: int, processes: int, silent_s: float, at: Standing | None) -> str:
    where = f", {_place(at)}" if at else ""
    return f"process {i} of {processes} is stopped or gone: not heard of since {_ago(silent_s)}{where}"


def _place(at: Standing) -> str:
    return f"after step {at.step}" if at.step else "before the first step"


def _ago(seconds: float) -> str:
    then = datetime.datetime.now() - datetime.timedelta(seconds=seconds)
    return f"{then:%Y-%m-%d %H:%M:%S}"


def _may_be_another(error: BaseException | None) -> bool:
    """Whether this process may have failed for want of another: jax says so, and it is not about memory."""
    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error is not None and "RESOURCE_EXHAUSTED" not in str(error)


class _Service:
    """jax's coordination service, which process 0 holds: the standings told to it, and its ruling."""

    def __init__(self, client: Any) -> None:
        self._client, self._place = client, f"vit_jax/watch/{next(_watches)}"

    def tell(self, process: int, at: Standing) -> None:
        self._set(f"standings/{process}", at)

    def standings(self) -> dict[int, Standing]:
        entries = self._client.key_value_dir_get(f"{self._place}/standings/")
        return {int(key.rpartition("/")[2]): Standing(*json.loads(value)) for key, value in entries}

    def rule(self, ruling: Ruling) -> None:
        self._set("ruling", ruling)

    def ruling(self) -> Ruling:
        return Ruling(*json.loads(self._client.key_value_try_get(f"{self._place}/ruling")))

    def _set(self, key: str, value: Any) -> None:
        self._client.key_value_set(f"{self._place}/{key}", json.dumps(value), allow_overwrite=True)


class _Watchdog:
    def __init__(self, clock: Clock, limit_s: float, own_process: bool) -> None:
        self._clock, self._limit_s, self._own_process = clock, limit_s, own_process
        self._process, self._processes = jax.process_index(), jax.process_count()
        self._poll_s = min(POLL_S, limit_s / 10)
        self._silent_limit_s = min(SILENT_S, limit_s)
        self._closed = threading.Event()  # it judges no more
        self._left = threading.Event()  # its last words are there to be told
        self._at = Standing()
        self._heard: dict[int, Standing] = {}  # by process 0
        self._pulses: dict[int, tuple[int, float]] = {}  # the last of each process, and for how long
        self._ruling = Ruling()  # of process 0, as it is told here
        self._threads = [threading.Thread(target=self._judge, name="watchdog", daemon=True)]
        if self._processes > 1:
            service = _Service(distributed.client())
            self._threads += [threading.Thread(target=self._talk, args=(service,), daemon=True)]
        for thread in self._threads:
            thread.start()

    def explain(self) -> None:
        """Wait as long as it takes to find another process gone, which then ends this one and is named."""
        if self._processes > 1:
            self._closed.wait(self._silent_limit_s + 6 * self._poll_s)

    def close(self, error: str) -> None:
        """This process leaves the run, with an `error` or without."""
        judging, *talking = self._threads
        self._closed.set()
        judging.join(POLL_S)  # it writes what follows, too
        self._at = self._at._replace(ended=error)
        if error and self._process == 0:
            line = f"process 0 of {self._processes} has ended {_place(self._at)} ({error})"
            self._ruling = self._ruling._replace(line=line)
        self._ruling = self._ruling._replace(over=True)
        self._left.set()
        for thread in talking:
            thread.join(POLL_S)

    def _talk(self, service: _Service) -> None:
        """Tell and hear, until this process leaves: then for the last time."""
        last = False
        while not last:
            last = self._left.wait(self._poll_s)
            with suppress(Exception):  # no answer: the other thread counts for how long
                service.tell(self._process, self._at)
                if self._process:
                    self._ruling = service.ruling()
                else:
                    self._heard = service.standings()
                    service.rule(self._ruling)

    def _judge(self) -> None:
        before = time.monotonic()
        said_moves = -1
        while not self._closed.wait(self._poll_s):
            now = time.monotonic()
            # Time in which this process was stopped itself does not count against others.
            passed_s, before = min(now - before, 2 * self._poll_s), now
            line = self._look(passed_s)
            if not line:
                continue
            if self._processes > 1 or self._own_process:
                return self._end(line)
            if said_moves != self._clock.moves:
                said_moves = self._clock.moves
                print(f"warning: {line}", file=sys.stderr, flush=True)

    def _look(self, passed_s: float) -> str:
        """Note where this process is, and what others told; then say what is wrong."""
        clock, at = self._clock, self._at
        still_s = at.still_s + passed_s if at.moves == clock.moves else 0.0
        self._at = Standing(at.pulse + 1, clock.moves, clock.step, clock.doing, still_s)
        if self._process:
            return self._hear(passed_s)
        heard = {**self._heard, 0: self._at}
        line = judge(heard, self._count(heard, passed_s), self._processes, self._limit_s)
        self._ruling = Ruling(self._at.pulse, line)
        return line

    def _hear(self, passed_s: float) -> str:
        ruling = self._ruling
        if ruling.over or not ruling.pulse:
            return ruling.line
        silent_s = self._count({0: ruling}, passed_s)[0]
        if not ruling.line and silent_s > self._silent_limit_s:
            return _silent(0, self._processes, silent_s, None)
        return ruling.line

    def _count(self, pulses: dict[int, Any], passed_s: float) -> dict[int, float]:
        """For how long each process has had the same pulse."""
        for i, at in pulses.items():
            pulse, silent_s = self._pulses.get(i, (at.pulse, 0.0))
            self._pulses[i] = (at.pulse, silent_s + passed_s if at.pulse == pulse else 0.0)
        return {i: silent_s for i, (_, silent_s) in self._pulses.items()}

    def _end(self, line: str) -> None:
        """Say the line and end the process, unless it leaves by itself: it may have the same error."""
        polls = 2 if self._process else 4  # process 0 holds the service by which the others hear
        if self._processes > 1 and self._closed.wait(polls * self._poll_s):
            return
        print(
            f"error: {line}; all processes end, and the same command continues", file=sys.stderr, flush=True
        )
        os._exit(EXIT_CODE)
