"""Scalars for TensorBoard.

Written at once: tensorboardX's own SummaryWriter does it in a thread and once more at exit, where
a full disk is an error that nobody can catch.
"""

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from vit_jax.run.report import Sink


class Scalars(Sink):
    """One event file in `folder`; of earlier ones, TensorBoard drops what is at or after `step`."""

    def __init__(self, folder: Path, *, step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(wall_time=time.time(), step=step, session_log=start))

    def add(self, step: int, values: dict[str, float]) -> None:
        """One event with all values."""
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self._file.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Flush to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flush to the disk and close the file."""
        self._file.close()
