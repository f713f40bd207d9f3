"""Scalars, the config and pictures for TensorBoard.

Written at once: tensorboardX's own SummaryWriter does it in a thread and once more at exit, where
a full disk is an error that nobody can catch.
"""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import custom_scalars, text

from vit_jax.run.report import Sink


class Scalars(Sink):
    """One event file in `folder`; of earlier ones, TensorBoard drops what is at or after `step`.

    It begins with a text called config. `charts` are those of the tab for custom scalars, under `health`: of
    each name, the pattern of the scalars that it draws together.
    """

    def __init__(
        self, folder: Path, *, step: int, config: str = "", charts: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(wall_time=time.time(), step=step, session_log=start))
        code = "\n".join(f"    {line}" for line in config.splitlines())  # Markdown shows it as it is written
        self._write(step, text("config", code))
        if charts:
            lines = {name: ("Multiline", [pattern]) for name, pattern in charts.items()}
            self._write(step, custom_scalars({"health": lines}))

    def add(self, step: int, values: dict[str, float]) -> None:
        """One event with all values."""
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self._write(step, summary)

    def show(self, step: int, name: str, image_hwc: np.ndarray) -> None:
        """One event with the picture, as PNG."""
        height, width, channels = image_hwc.shape
        file = io.BytesIO()
        Image.fromarray(image_hwc[..., 0] if channels == 1 else image_hwc).save(file, "PNG")
        sizes = {"height": height, "width": width, "colorspace": channels}
        picture = Summary.Image(encoded_image_string=file.getvalue(), **sizes)
        self._write(step, Summary(value=[Summary.Value(tag=name, image=picture)]))

    def _write(self, step: int, summary: Any) -> None:
        self._file.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Flush to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flush to the disk and close the file."""
        self._file.close()
