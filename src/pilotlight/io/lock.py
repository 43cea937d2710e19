"""Who may write into a working folder: a flock on its `lock` file, and a sign of life for when that is not enough.

The holder of the file that *bears the name* `lock` rules; a holder whose file lost the name has been superseded. So a
successor of a paused or unreachable manager takes over by renaming its own locked file there, and so does the successor
of one on another machine, whose lock may not be seen here. On file systems without flock the sign of life alone
decides. What does not live here: what a superseded manager could still break (nothing,
because each epoch writes to files of its own; see `opening.py`).
"""

from __future__ import annotations

import contextlib
import os
import socket

import msgspec

from pilotlight.core.errors import OutputBusy, Superseded
from pilotlight.io.files import Files

LOCK_NAME = "lock"
_NEXT_NAME = "lock.next"
_TRIES = 1000


class _Holder(msgspec.Struct):
    pid: int = 0
    host: str = ""
    epoch: int = 0


class FolderLock:
    """Held from construction to `release`. Raises OSError, `OutputBusy`."""

    def __init__(self, folder: str, output: str, files: Files, stale_after_s: float) -> None:
        """Creates the folder if it is not there. `output` is for messages."""
        self._folder = folder
        self._output = output
        self._files = files
        self._path = os.path.join(folder, LOCK_NAME)
        self._next = os.path.join(folder, _NEXT_NAME)
        self.predecessor_alive = False
        """The last holder may still be running."""
        self._fd = self._acquire(stale_after_s)
        try:
            self.sign(0)
        except BaseException:
            self.release()
            raise

    def sign(self, epoch: int) -> None:
        """Say in the file who holds it."""
        holder = msgspec.json.encode(_Holder(os.getpid(), socket.gethostname(), epoch))
        self._files.truncate(self._fd, 0)
        os.pwrite(self._fd, holder, 0)

    def beat(self) -> None:
        """Give a sign of life. Raises `Superseded`."""
        self.check()
        with contextlib.suppress(OSError):
            os.utime(self._fd)

    def check(self) -> None:
        """Raise `Superseded` unless this is still the file that bears the name."""
        if not self._bears(self._fd, self._path):
            raise Superseded(
                f"another command has taken over {self._output}, or its folder {self._folder} was removed: "
                "this one stops writing to it"
            )

    def release(self) -> None:
        """Idempotent."""
        if self._fd < 0:
            return
        try:
            with contextlib.suppress(OSError):
                if self._bears(self._fd, self._path):
                    self._files.unlink(self._path)
        finally:
            os.close(self._fd)
            self._fd = -1

    def _acquire(self, stale_after_s: float) -> int:
        for _ in range(_TRIES):
            self._files.mkdir(self._folder)
            try:
                fd, created = self._open(self._path)
            except FileNotFoundError:
                continue  # the last holder has just finished and removed the folder
            locked = self._files.lock(fd)
            if not self._bears(fd, self._path):
                os.close(fd)
                continue
            holder = _read(fd)
            elsewhere = holder.host not in {"", socket.gethostname()}
            if (locked and not elsewhere) or (locked is None and created):
                return fd
            ended = locked is None and _ended(holder)
            os.close(fd)
            taken = self._take_over(holder, ended or locked is True, stale_after_s)
            if taken is not None:
                self.predecessor_alive = not ended
                return taken
        raise OutputBusy(f"{self._output} is opened by many commands at once: start one again")

    def _take_over(self, holder: _Holder, at_once: bool, stale_after_s: float) -> int | None:
        """Put a locked file in the place of one that gives no sign of life, or at once; None to try again."""
        fd, _ = self._open(self._next)
        try:
            if self._files.lock(fd) is False:
                raise self._busy(holder, 0)
            try:
                # Both times come from the file system, so the hosts' clocks don't matter.
                os.utime(fd)
                age_s = os.fstat(fd).st_mtime - os.stat(self._path).st_mtime
                if not self._bears(fd, self._next):
                    os.close(fd)
                    return None
                if not at_once and age_s <= stale_after_s:
                    self._files.unlink(self._next)
                    raise self._busy(holder, age_s)
                self._files.replace(self._next, self._path)
            except FileNotFoundError:
                self._files.unlink(self._next)
                os.close(fd)
                return None
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        return fd

    def _busy(self, holder: _Holder, age_s: float) -> OutputBusy:
        who = f"process {holder.pid} on {holder.host}" if holder.pid else "another command"
        return OutputBusy(
            f"{self._output} is being written by {who} (last sign of life {max(0.0, age_s):.0f} s ago): "
            "wait for it, stop it, or choose another output"
        )

    def _open(self, path: str) -> tuple[int, bool]:
        with contextlib.suppress(FileExistsError):
            return self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), True
        return self._files.open(path, os.O_RDWR | os.O_CREAT), False

    @staticmethod
    def _bears(fd: int, path: str) -> bool:
        try:
            named, held = os.stat(path), os.fstat(fd)
        except OSError:
            return False
        return (named.st_ino, named.st_dev) == (held.st_ino, held.st_dev)


def _read(fd: int) -> _Holder:
    with contextlib.suppress(msgspec.DecodeError, OSError):
        return msgspec.json.decode(os.pread(fd, 4096, 0), type=_Holder)
    return _Holder()


def _ended(holder: _Holder) -> bool:
    """Whether that process is surely gone (only known on its own host)."""
    if not holder.pid or holder.host != socket.gethostname():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
