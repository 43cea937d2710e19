"""File operations that stop, tear or refuse at a chosen step, and a disk that forgets what was not synced."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence

from pilotlight.io.files import Files


class Crash(BaseException):
    """The process dies here: nothing after this step happens. Not an Exception, so that no handler saves anything."""


class QuickFiles(Files):
    """Leaves the disk alone: a process that dies loses nothing by that."""

    def datasync(self, fd: int) -> None:
        pass

    def sync_folder(self, path: str) -> None:
        pass


class CrashingFiles(Files):
    """Dies before its n-th step (a torn write writes half first); after that, every step dies."""

    def __init__(self, crash_at: int, *, torn: bool = False) -> None:
        self.left = crash_at
        self.torn = torn

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash

    def open(self, path: str, flags: int) -> int:
        self._step()
        return super().open(path, flags)

    def write(self, fd: int, parts: Sequence[bytes]) -> int:
        try:
            self._step()
        except Crash:
            if self.torn and self.left == -1:
                data = b"".join(parts)
                super().write(fd, [data[: len(data) // 2]])
            raise
        return super().write(fd, parts)

    def truncate(self, fd: int, length: int) -> None:
        self._step()
        super().truncate(fd, length)

    def datasync(self, fd: int) -> None:
        self._step()

    def sync_folder(self, path: str) -> None:
        self._step()

    def replace(self, source: str, target: str, source_folder_fd: int | None = None) -> None:
        self._step()
        super().replace(source, target, source_folder_fd)

    def unlink(self, path: str, folder_fd: int | None = None) -> None:
        self._step()
        super().unlink(path, folder_fd)

    def mkdir(self, path: str) -> None:
        self._step()
        super().mkdir(path)

    def rmdir(self, path: str) -> None:
        self._step()
        super().rmdir(path)


class FullDisk(QuickFiles):
    """Takes `room` bytes and then none, writing what still fits; `room` may be raised."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, parts: Sequence[bytes]) -> int:
        data = b"".join(parts)
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[: self.room]
        self.room -= len(data)
        return super().write(fd, [data])


class PowerCut(QuickFiles):
    """Remembers how much of each file was synced; `cut` loses a random part of the rest (all of it if not told how)."""

    def __init__(self) -> None:
        self.synced: dict[tuple[int, int], int] = {}

    def datasync(self, fd: int) -> None:
        status = os.fstat(fd)
        self.synced[status.st_ino, status.st_dev] = status.st_size

    def cut(self, folder: str, rng: random.Random | None = None) -> None:
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            status = os.stat(path)
            kept = min(self.synced.get((status.st_ino, status.st_dev), 0), status.st_size)
            length = rng.randint(kept, status.st_size) if rng else kept
            os.truncate(path, length)
            if rng and length > kept and rng.random() < 0.5:
                # Pages reach the disk in any order: what was not synced may be zeros.
                with open(path, "r+b") as file:
                    file.seek(rng.randint(kept, length - 1))
                    file.write(b"\0" * rng.randint(1, 50))
            status = os.stat(path)
            self.synced[status.st_ino, status.st_dev] = status.st_size
