"""The system calls that the working folder's protocol is made of, behind one seam.

A test replaces `Files` to stop, tear or refuse any single step; nothing else in `io/` that changes the disk calls `os`
directly. Here too: what an `OSError` means to the person who reads it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Sequence

from pilotlight.core.errors import OutputError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}
_COPY_BYTES = 8 << 20


class Files:
    """Thin, blocking, one call each; every method raises OSError. Override to inject faults.

    umask: the one that the modes of new files and folders follow; None: this process's.
    """

    umask: int | None = None

    def open(self, path: str, flags: int) -> int:
        """A descriptor that children don't inherit."""
        fd = os.open(path, flags | os.O_CLOEXEC, 0o666 if self.umask is None else 0o600)
        if self.umask is not None and flags & os.O_CREAT:
            with contextlib.suppress(OSError):  # not ours, or a file system without modes
                os.fchmod(fd, 0o666 & ~self.umask)
        return fd

    def write(self, fd: int, parts: Sequence[bytes]) -> int:
        """One system call; may write less than all."""
        return os.writev(fd, parts)

    def truncate(self, fd: int, length: int) -> None:
        """Cut the file to `length` bytes."""
        os.ftruncate(fd, length)

    def datasync(self, fd: int) -> None:
        """Make content and length survive a power cut."""
        getattr(os, "fdatasync", os.fsync)(fd)

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder survive a power cut; file systems that can't do it are taken as they are."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(fd)

    def replace(self, source: str, target: str, source_folder_fd: int | None = None) -> None:
        """Rename, atomically taking the target's place."""
        os.replace(source, target, src_dir_fd=source_folder_fd)

    def unlink(self, path: str, folder_fd: int | None = None) -> None:
        """Remove a file; fine if it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=folder_fd)

    def mkdir(self, path: str) -> None:
        """Create a folder; fine if it is there."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o777 if self.umask is None else 0o777 & ~self.umask)

    def rmdir(self, path: str) -> None:
        """Remove a folder if it is there and empty."""
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                raise

    def lock(self, fd: int) -> bool | None:
        """True: locked. False: someone else has it. None: this file system has no locks."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
                return None
            raise
        return True

    def write_all(self, fd: int, parts: Sequence[bytes]) -> None:
        """All of the parts: one call, unless the system takes less than offered."""
        total = sum(map(len, parts))
        written = self.write(fd, parts)
        while written < total:
            more = self.write(fd, [b"".join(parts)[written:]])
            if more == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += more

    def write_file(self, path: str, data: bytes) -> None:
        """A whole small file, durable, appearing under its name at once."""
        partial = path + ".partial"
        fd = self.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.write_all(fd, [data])
            self.datasync(fd)
        finally:
            os.close(fd)
        self.replace(partial, path)

    def copy(self, source: str, target: str, length: int) -> None:
        """The first `length` bytes of `source`, durable, as a new file."""
        reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            writer = self.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                at = 0
                while at < length:
                    data = os.pread(reader, min(_COPY_BYTES, length - at), at)
                    if not data:
                        raise OSError(errno.EIO, "the file got shorter while it was copied")
                    self.write_all(writer, [data])
                    at += len(data)
                self.datasync(writer)
            finally:
                os.close(writer)
        finally:
            os.close(reader)


def output_error(path: str, error: OSError) -> OutputError:
    """What a failed call on `path` means, and what to do about it."""
    reason = error.strerror or str(error)
    if error.errno in _NO_ROOM:
        return OutputError(
            f"no room left to write {path} ({reason}): free some space and run the same command again; "
            "what was written stays"
        )
    if error.errno in _GONE:
        return OutputError(f"{path} is gone ({reason}): run the same command again to go on with what is left")
    return OutputError(
        f"can't write {path} ({reason}): put that right and run the same command again; what was written stays"
    )
