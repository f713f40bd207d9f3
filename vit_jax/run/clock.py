"""Images a second, and the share of the time that was spent waiting for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Rates between readings, counted from `step`."""

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        """Start to count at `step`."""
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the enclosed time as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def read(self, step: int, batch_size: int) -> dict[str, float]:
        """Rates since the last reading."""
        seconds = time.perf_counter() - self._start
        images = (step - self._step) * batch_size
        rates = {"train/images_per_s": images / seconds, "train/data_wait": self._waited / seconds}
        self.restart(step)
        return rates
