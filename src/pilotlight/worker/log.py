"""What the worker's processes say on stderr, which is their log file.

A log whose disk is full loses lines; it must not take along whoever wrote them.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback


def say(text: str) -> None:
    """One line with the time of day."""
    say_plainly(f"{time.strftime('%H:%M:%S')} {text}")


def say_plainly(text: str) -> None:
    """One line that may be quoted as the reason of an end."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def say_error() -> None:
    """The error that is being handled, with its traceback."""
    with contextlib.suppress(OSError):
        traceback.print_exc()
        sys.stderr.flush()


def flush() -> None:
    """Let go of what was written to stdout and stderr by anyone, before `os._exit`."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
