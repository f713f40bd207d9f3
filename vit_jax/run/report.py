"""What a run reports, and the places that it goes to."""

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np


class Sink(Protocol):
    """A place for the reports of a run: subclass it with the methods that it needs, the others do nothing.

    All are called in the thread that trains, of process 0 alone; an error in one of them ends the run, which
    the same command continues. A run that continues reports the steps since its checkpoint again.
    """

    def add(self, step: int, values: dict[str, float]) -> None:
        """Values measured after `step` steps, such as {"train/loss": 0.3} or {"eval/top1": 0.9}."""

    def show(self, step: int, name: str, image_hwc: np.ndarray) -> None:
        """A picture made after `step` steps, uint8 [h, w, 1 or 3]."""

    def say(self, line: str) -> None:
        """A line to read."""

    def flush(self) -> None:
        """Write what is pending: called after each evaluation, before each checkpoint, and at the end."""

    def close(self) -> None:
        """The end, after an error too."""


class Reporter:
    """Several sinks as one, to be used as a context; warnings of the rooms below are lines, too."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._warnings = _Lines(self)
        self._logger = logging.getLogger("vit_jax")

    def add(self, step: int, values: dict[str, float]) -> None:
        """As `Sink.add`."""
        for sink in self._sinks:
            sink.add(step, values)

    def show(self, step: int, name: str, image_hwc: np.ndarray) -> None:
        """As `Sink.show`."""
        for sink in self._sinks:
            sink.show(step, name, image_hwc)

    def say(self, line: str) -> None:
        """As `Sink.say`."""
        for sink in self._sinks:
            sink.say(line)

    def flush(self) -> None:
        """As `Sink.flush`."""
        for sink in self._sinks:
            sink.flush()

    def __enter__(self) -> Self:
        if self._sinks:
            self._logger.addHandler(self._warnings)
            self._logger.propagate = False  # the root's handler would print them again
        return self

    def __exit__(self, kind: type[BaseException] | None, e: Any, trace: TracebackType | None) -> None:
        if self._sinks:
            self._logger.removeHandler(self._warnings)
            self._logger.propagate = True
        failed = []
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:  # the other sinks are closed all the same
                failed.append(error)
        if failed and kind is None:
            raise failed[0]


class _Lines(logging.Handler):
    """Warnings of the rooms below, such as a skipped image, among the lines of the run."""

    def __init__(self, report: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report.say(record.getMessage())
