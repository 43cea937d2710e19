"""Model weights in memory ("parked"): sealed memfds that the agent holds, and a folder that replicas load from.

The folder has the small files as they are and each weight file as a link to /proc/AGENT/fd/N. There is one copy per
machine: memfds are named by their content's digest, agents note theirs in the cache folder, and another agent of the
same user that opens one holds the same memory, however the first agent ends. Needs Linux, and no /dev/shm.

Methods block, and are to be called in threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pilotlight.files import filecopy, modelfiles
from pilotlight.files.locks import CopyError, Leaving, held
from pilotlight.files.modelfiles import Source

PIECE_BYTES = 64 << 20
RESERVE_BYTES = 64 << 20
"""Host memory that stays free beside a copy."""
PREFIX = "pilotlight-"


@dataclass(slots=True)
class Parked:
    """A parked variant. path: what a runtime loads from, in `folder` or that itself. bytes: of its weights."""

    folder: Path
    bytes: int
    path: Path = field(init=False)
    fds: dict[str, int] = field(default_factory=dict[str, int])
    """The memfds by digest."""

    def __post_init__(self) -> None:
        self.path = self.folder


@dataclass(slots=True)
class _Turn:
    """Who is at work on one variant. users: that one, and those who wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class Parking:
    """What one agent holds in memory.

    scratch: a folder of this worker, gone when it is. notes: where the agents of a machine note their memfds.
    memory_free: bytes of host memory that are free now.
    """

    def __init__(self, scratch: Path, notes: Path, stop: threading.Event, memory_free: Callable[[], int]) -> None:
        self._folder = scratch / "parked"
        self._notes = notes / _boot()
        self._stop = stop
        self._memory_free = memory_free
        self._parked: dict[str, Parked] = {}
        self._lock = threading.Lock()
        self._busy: dict[str, _Turn] = {}

    def find(self, variant_id: str) -> Parked | None:
        """A variant that is parked here."""
        return self._parked.get(variant_id)

    def park(self, variant_id: str, model: Path, digest: Callable[[Source], str]) -> Parked:
        """Hold the weights of the model in that folder (or of that file). Raises `CopyError`.

        digest: the SHA-256 of one of its files, wherever that is known from.
        """
        if sys.platform != "linux":
            raise CopyError("parking needs Linux (memfd_create)")
        with self._alone(variant_id):
            if variant_id in self._parked:
                return self._parked[variant_id]
            parked = Parked(self._folder / variant_id, 0)
            try:
                self._fill_in(parked, model, digest)
            except OSError as error:
                self._let_go(parked)
                raise CopyError(f"its weights can't be held in memory: {error.strerror or error}") from error
            except BaseException:
                self._let_go(parked)
                raise
            self._parked[variant_id] = parked
            return parked

    @contextlib.contextmanager
    def _alone(self, variant_id: str) -> Generator[None]:
        """One thread at a time is at work on a variant."""
        with self._lock:
            turn = self._busy.setdefault(variant_id, _Turn())
            turn.users += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.users -= 1
                if not turn.users:
                    del self._busy[variant_id]

    def _fill_in(self, parked: Parked, model: Path, digest: Callable[[Source], str]) -> None:
        sources = modelfiles.of(model)
        if not any(source.is_weights for source in sources):
            raise CopyError(f"{model} holds no weights that could be parked")
        shutil.rmtree(parked.folder, ignore_errors=True)
        parked.folder.mkdir(mode=0o700, parents=True)
        if not model.is_dir():
            parked.path = parked.folder / sources[0].relative
        for source in sources:
            target = parked.folder / source.relative
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not source.is_weights:
                shutil.copyfile(source.path, target)
                continue
            name = digest(source)
            if name not in parked.fds:
                parked.fds[name] = self._memory_of(source, name)
            target.symlink_to(f"/proc/{os.getpid()}/fd/{parked.fds[name]}")
            parked.bytes += source.size

    def drop(self, variant_id: str) -> None:
        """Let go of a variant's memory; what maps it keeps it until it ends."""
        with self._alone(variant_id):
            parked = self._parked.pop(variant_id, None)
            if parked is not None:
                self._let_go(parked)

    def _let_go(self, parked: Parked) -> None:
        shutil.rmtree(parked.folder, ignore_errors=True)
        for digest, fd in parked.fds.items():
            with contextlib.suppress(OSError):
                self._note(digest, fd).unlink(missing_ok=True)
            os.close(fd)
        parked.fds.clear()

    def close(self) -> None:
        """Let go of everything that is parked."""
        for variant_id in list(self._parked):
            self.drop(variant_id)

    # --- one file

    def _memory_of(self, source: Source, digest: str) -> int:
        """A sealed memfd with a source's content: that of another agent, or a new one."""
        with contextlib.ExitStack() as stack:
            noted = _made(self._notes)
            if noted:  # else there is nobody to share with
                stack.enter_context(held(self._notes / f"making-{digest[:2]}", self._stop))
                found = self._adopt(digest, source.size)
                if found is not None:
                    return self._registered(digest, found)
            fd = self._fill(source, digest)
            return self._registered(digest, fd) if noted else fd

    def _fill(self, source: Source, digest: str) -> int:
        if source.size + RESERVE_BYTES > self._memory_free():
            free = max(0, self._memory_free())
            raise CopyError(f"it needs {source.size / 1e9:.2f} GB of host memory, and {free / 1e9:.2f} GB are free")
        fd = os.memfd_create(f"{PREFIX}{digest}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with filecopy.opened(source) as origin:
                self._send(origin, fd, source.size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _seals())
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _send(self, origin: int, fd: int, size: int) -> None:
        offset = 0
        while offset < size:
            if self._stop.is_set():
                raise Leaving("this worker ends")
            sent = os.sendfile(fd, origin, offset, min(PIECE_BYTES, size - offset))
            if not sent:
                raise CopyError("a file became shorter while it was read")
            offset += sent

    # --- sharing

    def _adopt(self, digest: str, size: int) -> int | None:
        """Another agent's memory of that content as a descriptor of our own."""
        self._sweep()
        for note in self._notes.glob(f"{digest}.*"):
            pid, _, number = note.name.removeprefix(f"{digest}.").partition(".")
            if not (pid.isdigit() and number.isdigit()):
                continue
            try:
                fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                note.unlink(missing_ok=True)
                continue
            if _is_ours(fd, digest, size):
                return fd
            os.close(fd)
            note.unlink(missing_ok=True)
        return None

    def _sweep(self) -> None:
        """Remove the notes of agents that are gone."""
        for note in self._notes.glob("*.*.*"):
            pid = note.name.split(".")[1]
            if not (pid.isdigit() and os.path.exists(f"/proc/{pid}")):
                note.unlink(missing_ok=True)

    def _registered(self, digest: str, fd: int) -> int:
        with contextlib.suppress(OSError):
            self._note(digest, fd).touch(mode=0o600)
        return fd

    def _note(self, digest: str, fd: int) -> Path:
        return self._notes / f"{digest}.{os.getpid()}.{fd}"


def _seals() -> int:
    return fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _is_ours(fd: int, digest: str, size: int) -> bool:
    """Whether a descriptor is on sealed memory of that name and size. Content that is sealed is what its maker, who is
    this user, put there."""
    try:
        status = os.fstat(fd)
        name = os.readlink(f"/proc/self/fd/{fd}")
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _seals() == _seals()
    except OSError:
        return False
    return (
        sealed
        and stat.S_ISREG(status.st_mode)
        and status.st_size == size
        and status.st_uid == os.getuid()
        and name == f"/memfd:{PREFIX}{digest} (deleted)"
    )


def _boot() -> str:
    """Process numbers mean something until this machine starts again, and within one namespace of them."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    return "unknown"


def _made(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def digests_of(files: Mapping[str, str], otherwise: Callable[[Source], str]) -> Callable[[Source], str]:
    """Digests by relative path where they are known, else by asking."""
    return lambda source: files.get(source.relative) or otherwise(source)
