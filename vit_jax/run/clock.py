"""Where the wall time of a run goes, and what its main thread does at this moment."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Every moment of a run is one of these, so that their shares sum to 1.
ACTIVITIES = ("steps", "data", "evaluation", "saving", "compiling", "restoring", "starting")


class Clock:
    """Counts the wall time since `started` (seconds, as `now` tells them; None: from now on) by activity.

    What is outside `spent` is "starting" until a first step was sent to the devices, and "steps" from then
    on. Steps are sent ahead: "steps" is the time in which the host sends them and waits for the devices to
    do them, and "data" that in which it waits for a batch, whether the devices still have work or not.

    `doing`, `step` and `moves`, a number that grows with everything that is begun or ended, may be read by
    other threads.
    """

    def __init__(self, started: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started = self._since = now() if started is None else started
        self._seconds: dict[str, float] = dict.fromkeys(ACTIVITIES, 0.0)
        self._at_reading = (0, self._seconds.copy())
        self._first_step_s: float | None = None
        self.doing, self.step, self.moves = "starting", 0, 0
        self.repeated = 0  # steps done before, but after the checkpoint that the run continues from

    def begin(self, step: int, *, repeated: int = 0) -> None:
        """Steps follow after `step`, `repeated` of them not for the first time."""
        self.step, self.repeated = step, repeated
        self._at_reading = (step, {name: 0.0 for name in ACTIVITIES})

    @contextmanager
    def spent(self, activity: str) -> Iterator[None]:
        """Count the enclosed time as `activity`, and not as what it is enclosed in."""
        outer = self.doing
        self._turn_to(activity)
        try:
            yield
        finally:
            self._turn_to(outer)

    def move(self) -> None:
        """Note progress within an activity, such as a batch of an evaluation."""
        self.moves += 1

    def sent(self, step: int) -> None:
        """A step was sent to the devices, `step` in all."""
        self.step = step
        self._turn_to("steps")
        if self._first_step_s is None:
            self._first_step_s = self._since - self._started

    def read(self, batch_size: int) -> dict[str, float]:
        """Images per second of steps and data, and the share of each activity, since the last reading.

        The first reading also tells the seconds to the first step, and the steps that are repeated.
        """
        self._turn_to(self.doing)
        step, before = self._at_reading
        self._at_reading = (self.step, dict(self._seconds))
        passed = {name: seconds - before[name] for name, seconds in self._seconds.items()}
        rate = (self.step - step) * batch_size / (passed["steps"] + passed["data"])
        whole = sum(passed.values())
        shares = {f"time/{name}": seconds / whole for name, seconds in passed.items()}
        return {"train/images_per_s": rate, **shares, **({} if any(before.values()) else self._restart())}

    def summary(self) -> str:
        """One line on the whole time; empty if no step was made."""
        if self._first_step_s is None:
            return ""
        self._turn_to(self.doing)
        whole = sum(self._seconds.values())
        shares = ", ".join(f"{seconds / whole:.1%} {name}" for name, seconds in self._seconds.items())
        again = f"; {self.repeated} steps were repeated" if self.repeated else ""
        return f"time: {shares} of {whole:,.0f} s; first step after {self._first_step_s:,.0f} s{again}"

    def _restart(self) -> dict[str, float]:
        return {"time/first_step_s": self._first_step_s or 0.0, "time/repeated_steps": self.repeated}

    def _turn_to(self, activity: str) -> None:
        now = self._now()
        self._seconds[self.doing] += now - self._since
        self._since, self.doing = now, activity
        self.moves += 1


def process_start() -> float:
    """When this process began, in seconds of `time.monotonic`; now, where the system does not tell."""
    age_s = 0.0
    with suppress(OSError, ValueError, IndexError, AttributeError):  # Linux alone has all that is asked
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # "starttime" of proc(5): since the machine started
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - max(age_s, 0.0)
