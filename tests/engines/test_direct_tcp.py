"""The direct engine passes the kit through a pool's gate, over TCP and TLS: on one machine, and between two."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotlight.descriptors import Shortage
from pilotlight.engines.direct import DirectManagerLink, DirectWorkerLink
from pilotlight.gate import tokens
from pilotlight.gate.invitation import path_of
from pilotlight.gate.keys import Invitations, bind_port, load_keys
from pilotlight.gate.listening import Gate
from pilotlight.messages import WorkerMessage
from pilotlight.testing import links
from pilotlight.wire import PoolSpec
from tests.net.lan import Host, lan, missing

PORT = 7070


class GatedLink(DirectManagerLink):
    """A manager's link that opens and closes its gate itself."""

    def __init__(self, path: str, gate: Gate) -> None:
        super().__init__(path, gate)
        self.gate = gate

    async def start(
        self, on_message: Callable[[str, WorkerMessage], None], on_lost: Callable[[str, str], None]
    ) -> None:
        await super().start(on_message, on_lost)
        self.gate.start()

    async def stop(self) -> None:
        await super().stop()
        await self.gate.close()


def run_kit(
    folder: Path,
    check: Callable[..., Any],
    listen: str,
    where: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> None:
    """One check of the kit. where: the manager's sockets are made inside of it."""
    numbers = itertools.count()
    gates: list[Gate] = []

    def pair() -> tuple[GatedLink, Callable[[], DirectWorkerLink]]:
        pool = folder / str(next(numbers))
        pool.mkdir()
        keys, spec = load_keys(pool), PoolSpec(workers=0, log_dir="", listen=listen)
        with where():
            gate = Gate(bind_port(pool, spec.listen), keys, Shortage("the test", print))
        gates.append(gate)
        Invitations(pool, spec, keys, gate.port, 1, lambda _level, _text, _worker: None).write()
        link = GatedLink(str(pool / "s"), gate)
        # The kit's workers choose their names when they join; at the gate each must have said its own.
        names = iter("ab" if check is links.check_order_and_size else "aa")
        known: set[str] = set()

        def worker_link() -> DirectWorkerLink:
            made = DirectWorkerLink(file=path_of(pool, "worker"), name=next(names))
            if made._name in known:  # the same worker, once more
                made._ticket = tokens.ticket(keys.key, made._name)
            known.add(made._name)
            return made

        return link, worker_link

    async def run() -> None:
        await check(pair)
        for gate in gates:
            await gate.close()

    asyncio.run(run())


@pytest.mark.parametrize("check", links.CHECKS, ids=lambda check: check.__name__)
def test_kit(sockets: Path, check: Callable[..., Any]) -> None:
    run_kit(sockets, check, "127.0.0.1:0")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    """A manager's machine and a worker's, with 1 Gbit/s between them and a firewall that lets the one port through."""
    if why := missing():
        pytest.skip(why)
    with lan(tmp_path_factory.mktemp("lan"), 2) as net:
        manager, worker = net.hosts
        worker.admit_nothing(dial=(manager.address, PORT))
        yield manager, worker


@pytest.mark.parametrize("check", links.CHECKS, ids=lambda check: check.__name__)
def test_kit_between_machines(sockets: Path, hosts: tuple[Host, Host], check: Callable[..., Any]) -> None:
    manager, worker = hosts
    before = worker.sent_bytes()
    with worker.inside():
        run_kit(sockets, check, f"{manager.address}:{PORT}", manager.inside)
    if check is not links.check_nobody_there:
        assert worker.sent_bytes() - before > 1000, "it did not go over the wire"
