"""The runtime server: has imported a runtime, and forks a replica whenever the agent asks.

One thread, which never computes, tokenises or touches a device: a fork after any of that hangs or cripples the child.
It speaks lines of JSON over one socket to its agent; the new replica's socket comes attached to the line. It ends
when the agent does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from typing import NoReturn

import msgspec

from pilotlight.core.errors import PilotlightError
from pilotlight.ports import Runtime
from pilotlight.replica_messages import Exited, Forked, ServerReply, Spawn
from pilotlight.worker import build, log, replica

LINE_BYTES_MAX = 1 << 16


def _woken(number: int, frame: object) -> None:
    """A child ended."""


class Server:
    """The loop of one runtime server."""

    def __init__(self, control: socket.socket, runtime: Runtime) -> None:
        self._control = control
        self._runtime = runtime
        self._children: set[int] = set()
        self._names: dict[int, str] = {}
        self._text = b""
        self._sockets: list[int] = []

    def run(self) -> None:
        """Until the agent closes the control socket."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _woken)
        self._say(Forked(replica="", pid=os.getpid()))
        while True:
            ready, _, _ = select.select([self._control, wake_read], [], [])
            if wake_read in ready:
                os.read(wake_read, 4096)
                self._reap()
            if self._control in ready and not self._take(wake_read, wake_write):
                return

    def _take(self, *private: int) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, LINE_BYTES_MAX, 16)
        if not data:
            return False
        self._sockets += fds
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            self._fork(msgspec.json.decode(line, type=Spawn), self._sockets.pop(0), private)
        return True

    def _fork(self, spawn: Spawn, fd: int, private: tuple[int, ...]) -> None:
        pid = os.fork()
        if pid == 0:
            self._become(spawn, fd, private)
        os.close(fd)
        self._children.add(pid)
        self._names[pid] = spawn.replica
        self._say(Forked(replica=spawn.replica, pid=pid))

    def _become(self, spawn: Spawn, fd: int, private: tuple[int, ...]) -> NoReturn:
        """In the child: be a replica, and never come back."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for other in (*private, self._control.fileno(), *self._sockets):
                os.close(other)
            _write_to(spawn.log_path)
            replica.serve(socket.socket(fileno=fd), self._runtime)
            status = 0
        except BaseException:  # the last stop of this process: say it in the log and end
            log.say_error()
        finally:
            log.flush()
            os._exit(status)

    def _reap(self) -> None:
        for pid in list(self._children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._children.discard(pid)
                self._say(Exited(replica=self._names.pop(pid), status=os.waitstatus_to_exitcode(status)))

    def _say(self, message: ServerReply) -> None:
        self._control.sendall(msgspec.json.encode(message) + b"\n")


def _write_to(log_path: str) -> None:
    """Let stdout and stderr go to this file; where it can't be made, to the server's."""
    with contextlib.suppress(OSError):
        file = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)


def main(argv: list[str]) -> int:
    """`python -m pilotlight.worker.server RUNTIME FD`: started by the agent only."""
    name, fd = argv
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=int(fd))
    control.set_inheritable(False)
    try:
        runtime = build.runtime(name)
        runtime.preload()
        Server(control, runtime).run()
    except PilotlightError as error:
        log.say_plainly(str(error))
        return error.exit_code
    except (BrokenPipeError, ConnectionResetError):
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
