"""Figures and pictures of a run in a file that TensorBoard shows."""

import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ic_jax.files import named_in_errors
from train.data.decode import encode_png

FLUSH_SECONDS = 30.0  # from flush to flush, each of which waits for the disk


class EventFile:
    """A new event file, written by the thread that calls.

    TensorBoard's own writer, and that of tensorboardX, write in a thread, where nobody hears of a
    full disk, and whose queue then stops the caller for good.

    Raises:
        OSError: in any method, with the file's name: it cannot be written.
    """

    def __init__(self, folder: Path, first_step: int):
        """Begin a file in `folder`; what earlier files say of `first_step` and later is dropped."""
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        self._file = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        self._records = RecordWriter(self._file.open("wb"))
        self._write(0, file_version="brain.Event:2")
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))
        self._flushed = time.monotonic()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Add a value of a step."""
        self._add(step, Summary.Value(tag=name, simple_value=value))

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add a picture of a step; `pixels` are uint8 [h, w, 3]."""
        height, width, channels = pixels.shape
        image = Summary.Image(
            height=height,
            width=width,
            colorspace=channels,
            encoded_image_string=encode_png(pixels),
        )
        self._add(step, Summary.Value(tag=name, image=image))

    def flush(self) -> None:
        """Write out what was added, unless that was done within the last seconds."""
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            with named_in_errors(self._file):
                self._records.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write out what was added, and close the file, which is closed after an error as well."""
        with named_in_errors(self._file):
            self._records.close()

    def _add(self, step: int, value: Summary.Value) -> None:
        self._write(step, summary=Summary(value=[value]))

    def _write(self, step: int, **values: Any) -> None:
        event = Event(wall_time=time.time(), step=step, **values)
        with named_in_errors(self._file):
            self._records.write(event.SerializeToString())
