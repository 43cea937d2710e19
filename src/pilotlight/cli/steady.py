"""Streams that break no job: whoever reads what a command says may go away (`| head`), or its disk may be full."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO, cast


class Steady:
    """A text stream around another one. After the first failed write it says no more, and never raises for that."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As of a text stream."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """As of a text stream."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Whatever is still in the buffer, or comes later, goes nowhere; so the interpreter's last flush succeeds."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def steady_streams() -> None:
    """Make this process's standard output and error steady. A closed one (`2>&-`) becomes a hole."""
    for name in ("stdout", "stderr"):
        stream = cast("TextIO | None", getattr(sys, name))
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
        setattr(sys, name, Steady(stream))
