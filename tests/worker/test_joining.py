"""How long a worker tries to reach its pool, and what it says meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pilotlight.core.errors import ConfigError, JoinRefused, LinkClosed, PilotlightError
from pilotlight.files.place import Place
from pilotlight.messages import ManagerMessage, WorkerMessage
from pilotlight.wire import DeviceSpec, PoolSpec
from pilotlight.worker import build, loop
from pilotlight.worker.loop import AgentLoop

CPU = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=1 << 30)


class Link:
    """A way to a manager that says these errors, one after the other and then the last again; None lets it in, and
    loses it at once."""

    def __init__(self, *says: PilotlightError | None) -> None:
        self.says = list(says)
        self.dialled = 0
        self.joined = 0

    async def connect(self, on_message: Callable[[ManagerMessage], None], on_lost: Callable[[str], None]) -> None:
        self.dialled += 1
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if said is not None:
            raise said
        asyncio.get_running_loop().call_soon(on_lost, "it went away")

    def send(self, message: WorkerMessage) -> None:
        self.joined += type(message).__name__ == "Join"

    @property
    def ends(self) -> None:
        return None

    def close(self) -> None:
        pass


def run(link: Link, folder: Path, *, orphan_timeout_s: float = 60.0) -> None:
    spec = PoolSpec(workers=0, log_dir=str(folder), orphan_timeout_s=orphan_timeout_s)
    cache = Place(folder / "cache", "the test")
    agent = AgentLoop(
        "w",
        spec,
        [CPU],
        link,
        CPU.memory_bytes,
        build.copies(cache.path, 0, folder, None),
        build.surroundings(cache, folder, [CPU]),
    )
    asyncio.run(asyncio.wait_for(agent.run(), 30))


def test_who_is_refused_ends_at_once(tmp_path: Path) -> None:
    link = Link(JoinRefused("not you"))
    with pytest.raises(JoinRefused, match="not you"):
        run(link, tmp_path)
    assert link.dialled == 1


def test_who_can_not_reach_the_pool_tries_for_a_while_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "JOIN_S_MAX", 1.0)
    link = Link(LinkClosed("nobody listens"), LinkClosed("nobody listens"), LinkClosed("a firewall"))
    with pytest.raises(LinkClosed, match="a firewall"):
        run(link, tmp_path)
    said = capfd.readouterr().err
    assert link.dialled > 3
    assert said.count("nobody listens; trying again") == 1
    assert said.count("a firewall; trying again") == 1


def test_who_was_in_tries_until_its_orphan_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "JOIN_S_MAX", 0.0)
    link = Link(None, LinkClosed("nobody listens"), LinkClosed("nobody listens"), None, LinkClosed("nobody listens"))
    run(link, tmp_path, orphan_timeout_s=1.5)
    assert link.joined == 2


def test_who_was_in_ends_when_its_pool_turns_it_away(tmp_path: Path) -> None:
    link = Link(None, JoinRefused("another release"))
    with pytest.raises(ConfigError, match="another release"):
        run(link, tmp_path)
    assert link.joined == 1
