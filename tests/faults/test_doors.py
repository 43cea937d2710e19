"""Every door of a pool: which sockets its processes listen on, and that each lets in only who is meant.

What listens is read from the kernel's own tables (proc(5)), by inode, for each process that the pool has.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import msgspec
import pytest

from pilotlight.connection import Connection, frame
from pilotlight.files import identity, tokens
from pilotlight.gate import certificate, dialling
from pilotlight.gate import tokens as gate_tokens
from pilotlight.gate.handshake import Denied, Knock, read_answer
from pilotlight.gate.invitation import path_of, read_invitation
from pilotlight.messages import Join, ManagerMessage, Pin, SourceAsked, SourceNamed, Wants
from pilotlight.wire import Context, DeviceSpec, Offer
from tests.faults.dialled import Dialled, dialled_pool
from tests.faults.harness import Playground
from tests.faults.lasting import WAIT_S, request
from tests.faults.test_dialled import joined
from tests.faults.test_endings import wait_for

LISTEN, UNIX_LISTENS = "0A", 0x10000
"""A TCP socket's state, and a Unix socket's flag, where somebody listens (include/net/tcp_states.h, linux/net.h)."""


def inodes(pid: int) -> set[str]:
    """Sockets that a process has."""
    found: set[str] = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(link)
        except OSError:
            continue
        if name.startswith("socket:["):
            found.add(name[8:-1])
    return found


def doors(pid: int) -> set[str]:
    """Where a process can be reached: `tcp PORT`, `udp PORT`, `unix PATH` (`@...`: an abstract name)."""
    own, found = inodes(pid), set[str]()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in own and (kind.startswith("udp") or fields[3] == LISTEN):
                found.add(f"{kind[:3]} {int(fields[1].rpartition(':')[2], 16)}")
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in own and int(fields[3], 16) & UNIX_LISTENS:
            found.add(f"unix {fields[7] if len(fields) > 7 else '(no name)'}")
    return found


@dataclass
class House:
    """A pool with all that it can have: workers of its own, one that serves files, one that does not, a model."""

    there: Dialled
    ground: Playground
    context: Context
    workers: dict[str, int]

    def doors(self) -> dict[str, set[str]]:
        """By role; a worker's are told apart by its name."""
        names = {pid: name for name, pid in self.workers.items()}
        found: dict[str, set[str]] = {}
        for process in self.ground.processes():
            line = " ".join(process.cmdline())
            role = "files" if "pilotlight.files.service" in line else ""
            role = role or next((each for each, pids in self.ground.by_role().items() if process.pid in pids), "gone")
            key = names.get(process.pid, names.get(process.ppid(), role) if role == "files" else role)
            found.setdefault(key, set()).update(doors(process.pid))
        return found

    def file_port(self) -> int:
        """Where the worker that serves files does."""
        (port,) = [door.split()[1] for door in doors(self.workers["serves"]) if door.startswith("tcp")]
        return int(port)


@pytest.fixture
def house(ground: Playground) -> Iterator[House]:
    model = ground.folder / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(random.Random(1).randbytes(1 << 20))
    (model / "config.json").write_bytes(b"{}")
    for path in model.iterdir():
        os.utime(path, (1e9, 1e9))
    context = Context(runtime="echo", name="m", identity=identity.content_digest(model), model_path=str(model))
    with dialled_pool(ground, workers=1) as there:
        serves = there.worker("serves", None, "--serve-port", "0")
        quiet = there.worker("quiet", None, "--no-serve")
        with there.pool.client() as client:
            joined(client, 3)
            source, out = ground.rows(50), ground.folder / "out.jsonl"
            assert client.end_of(client.submit(request(source, out, context=context)).job).outcome == "completed"
            client.send(Pin(ticket=1, context=context))
            client.seen(lambda seen: sum(replica.state == "live" for w in seen.workers for replica in w.replicas) == 3)
        yield House(there, ground, context, {"serves": serves.pid, "quiet": quiet.pid})


def test_no_process_listens_anywhere_but_where_it_should(house: House) -> None:
    pool = house.there.pool.folder
    found = {role: where for role, where in house.doors().items() if where}
    assert found == {
        "manager": {f"tcp {house.there.port()}", f"unix {pool}/client.sock", f"unix {pool}/worker.sock"},
        "serves": {f"tcp {house.file_port()}"},
    }


def test_the_sockets_on_the_disk_are_their_users_alone(house: House) -> None:
    pool = house.there.pool.folder
    assert stat.S_IMODE(pool.stat().st_mode) == 0o700
    for name in ("client.sock", "worker.sock", "worker.json", "client.json", "gate.key", "gate.pem", "pool.json"):
        assert stat.S_IMODE((pool / name).stat().st_mode) == 0o600, name
    if os.geteuid() != 0:
        return  # only root can be somebody else
    pool.chmod(0o755)  # should its folder be open after all
    pool.parent.chmod(0o755)
    for name in ("client.sock", "worker.sock"):
        os.seteuid(65534)
        try:
            with socket.socket(socket.AF_UNIX) as sock, pytest.raises(PermissionError):
                sock.connect(str(pool / name))
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("role", ["worker", "client"])
def test_the_gate_lets_in_nobody_without_a_token(house: House, role: gate_tokens.Role) -> None:
    pool = house.there.pool.folder
    key = (pool / "gate.key").read_bytes()
    other: gate_tokens.Role = "client" if role == "worker" else "worker"
    good = read_invitation(path_of(pool, role), role).token
    shown = ["", "x", good[:-1], gate_tokens.token(bytes(32), role, 9e9), gate_tokens.token(key, role, 1)]
    shown.append(read_invitation(path_of(pool, other), other).token)
    for token in shown:
        with socket.create_connection(("127.0.0.1", house.there.port()), 10) as sock:
            tls: ssl.SSLSocket = certificate.dialler_context().wrap_socket(sock)
            with tls:
                tls.sendall(frame(msgspec.json.encode(Knock(role=role, name="w", token=token))))
                answer = b""
                while part := tls.recv(1 << 16):
                    answer += part
        denied = read_answer(answer[4:])
        assert isinstance(denied, Denied)
        assert denied.kind in {"unknown", "expired"}


async def offered(house: House) -> Offer:
    """What the manager offers to a worker of another machine that has not got the model: tokens for its files."""
    heard: asyncio.Queue[ManagerMessage] = asyncio.Queue()

    def prepare(connection: Connection) -> None:
        connection.on_message, connection.on_closed = heard.put_nowait, lambda _reason: None

    invitation = read_invitation(house.there.file, "worker")
    connection, _ = await dialling.dial(invitation, "guest", "", ManagerMessage, prepare)
    cpu = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=1 << 30)
    connection.send(Join(worker="guest", pid=1, host="far", devices=[cpu]))
    async with asyncio.timeout(WAIT_S):
        while True:
            message = await heard.get()
            if isinstance(message, Wants):
                for want in message.wants:
                    connection.send(SourceAsked(variant=want.variant, remote=True))
            if isinstance(message, SourceNamed) and message.offer is not None:
                connection.abort("that was all")
                await connection.gone.wait()
                return message.offer


def get(port: int, path: str, token: str) -> bytes:
    """The answer to a request, as the path is written."""
    text = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    answer = b""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(text.encode())
        while part := sock.recv(1 << 16):
            answer += part
    return answer


def test_files_are_given_for_their_own_token_only(house: House) -> None:
    offer = asyncio.run(offered(house))
    (one, other) = sorted(offer.tokens, key=lambda digest: digest != hashlib.sha256(b"{}").hexdigest())
    url = httpx2.URL(offer.url) if offer.url else None
    port = url.port if url is not None and url.port else house.there.port()
    wait_for(lambda: get(port, f"/files/{one}", offer.tokens[one]).endswith(b"\r\n\r\n{}"), "the file service is there")
    until, _, seal = offer.tokens[one].partition(".")
    past, later = str(int(time.monotonic()) - 5), str(int(until) + 3600)
    wrong = ["", "x", offer.tokens[other], f"{past}.{seal}", f"{later}.{seal}", f"{until}.{'0' * 64}", until]
    wrong += [tokens.mint(tokens.fresh_key(), one, time.monotonic() + 60)]
    for at in (port, house.there.port(), house.file_port()):
        for token in wrong:
            assert get(at, f"/files/{one}", token).startswith(b"HTTP/1.1 403 "), (at, token)
        for path in ("/etc/passwd", f"/files/{one}/../../etc/passwd", "/files/..%2f..%2f..%2fetc%2fpasswd", "/files/"):
            answer = get(at, path, offer.tokens[one])
            assert answer.split(b" ")[1] in {b"400", b"403", b"404"}, answer
            assert b"root:" not in answer
