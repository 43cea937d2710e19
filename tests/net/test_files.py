"""Model files between machines: the origin sends about one copy, peers the rest; cuts and deaths cost time only."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Generator
from pathlib import Path

import pytest

from pilotlight.files import identity, incoming
from pilotlight.messages import Pin
from pilotlight.wire import Context
from tests.faults.harness import Playground
from tests.faults.lasting import Client
from tests.net.lan import Host
from tests.net.machines import Machines, machines

MB = 1 << 20
WITHIN_S = 120.0


def model(folder: Path, size: int) -> Context:
    """A model of the echo runtime: one large file, which does not compress, and small ones."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_bytes(random.Random(1).randbytes(MB))
    (folder / "model.safetensors").write_bytes(random.Random(2).randbytes(size))
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    return Context(runtime="echo", name="m", identity=identity.content_digest(folder), model_path=str(folder))


def hide(host: Host, folder: Path) -> None:
    """Let a host see an empty folder there: it shares no file system with the others any more."""
    assert host.start(["mount", "-t", "tmpfs", "none", str(folder)], os.environ).wait() == 0


@contextlib.contextmanager
def world_of(ground: Playground, hosts: int, size: int, rate: str) -> Generator[tuple[Machines, Client, Context, Path]]:
    """A pool whose model is on its first host's disk only."""
    folder = ground.folder / "model"
    with machines(ground, hosts, rate) as world:
        context = model(folder, size)
        for host in world.net.hosts[1:]:
            hide(host, folder)
        client = Client(world.pool / "client.sock")
        try:
            yield world, client, context, folder
        finally:
            client.close()


def partial_bytes(host: Host) -> int:
    """How much of files that are not whole is on a host's disk."""
    return sum(map(incoming.there, incoming.partials(host.disk / "cache")))


def staged(host: Host, folder: Path) -> bool:
    """Whether a host has all of the model, byte by byte."""
    views = [path.parent for path in (host.disk / "cache" / "variants").glob("*/manifest.json")]
    return any(
        {path.name: path.read_bytes() for path in (view / "model").iterdir()}
        == {path.name: path.read_bytes() for path in folder.iterdir()}
        for view in views
    )


def all_staged(world: Machines, hosts: list[Host], folder: Path) -> None:
    world.until(lambda: all(staged(host, folder) for host in hosts), "all have the files", WITHIN_S)


def test_the_origin_sends_about_one_copy_and_workers_the_rest(ground: Playground) -> None:
    size = 48 * MB
    with world_of(ground, 6, size, "200mbit") as (world, client, context, folder):
        origin, *others = world.net.hosts
        for host in others:
            world.worker(host)
        world.until(lambda: len(world.processes("worker")) == 5, "workers are there")
        before = origin.sent_bytes()
        client.send(Pin(ticket=1, context=context))
        all_staged(world, others, folder)
        assert origin.sent_bytes() - before < 2.5 * size
        assert sum(host.sent_bytes() for host in others) > 2.5 * size
        world.until(lambda: len(world.processes("replica")) == 5, "replicas load from the copies")
        assert not any("(cold)" in path.read_text() for path in ground.folder.glob("**/*.log"))


def test_one_port_is_enough_to_get_files(ground: Playground) -> None:
    size = 8 * MB
    with world_of(ground, 3, size, "1gbit") as (world, client, context, folder):
        origin, *others = world.net.hosts
        for host in others:
            host.admit_nothing(dial=(origin.address, world.port))
            world.worker(host)
        client.send(Pin(ticket=1, context=context))
        all_staged(world, others, folder)
        assert origin.listening() == {(origin.address, world.port)}


@pytest.mark.parametrize("how", ["crash", "vanish"])
def test_a_machine_that_dies_while_it_passes_files_on_stops_nobody(ground: Playground, how: str) -> None:
    size = 24 * MB
    with world_of(ground, 5, size, "50mbit") as (world, client, context, folder):
        _, *others = world.net.hosts
        first, *rest = others
        client.send(Pin(ticket=1, context=context))
        world.worker(first)
        world.until(lambda: partial_bytes(first) > 2 * MB, "the first fetches")
        for host in rest:
            world.worker(host)
        world.until(lambda: all(partial_bytes(host) > 2 * MB for host in rest), "all fetch")
        getattr(first, how)()
        kept = {host.name: partial_bytes(host) for host in rest}
        assert all(kept.values())
        all_staged(world, rest, folder)


def test_a_link_that_heals_is_gone_on_with(ground: Playground) -> None:
    with world_of(ground, 2, 16 * MB, "50mbit") as (world, client, context, folder):
        origin, only = world.net.hosts
        client.send(Pin(ticket=1, context=context))
        world.worker(only)
        world.until(lambda: partial_bytes(only) > 8 * MB, "half of it came")
        only.cut()
        sent = origin.sent_bytes()
        world.until(lambda: "is gone" in world.logs(), "the worker misses its manager")
        only.heal()
        all_staged(world, [only], folder)
        assert origin.sent_bytes() - sent < 14 * MB, "what had come was sent again"
