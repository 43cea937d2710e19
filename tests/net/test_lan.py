"""The machines that other tests believe in: names, links, firewalls and deaths are real."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.lan import Host, Lan, lan

SERVE = """
import socket
server = socket.create_server(("", 7000))
print("up", flush=True)
while True:
    with server.accept()[0] as connection:
        connection.sendall(b"hello")
"""
SEND = """
import socket
server = socket.create_server(("", 7000))
print("up", flush=True)
server.accept()[0].sendall(bytes(4 << 20))
"""
TAKE = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 7000))
while connection.recv(1 << 16):
    pass
"""
DIAL = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 1); print(s.recv(9).decode())"


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Lan]:
    with lan(tmp_path, 3) as made:
        yield made


def python(host: Host, code: str, *arguments: str) -> subprocess.Popen[str]:
    return host.start([sys.executable, "-c", code, *arguments], os.environ, output=subprocess.PIPE)


def serve(host: Host, code: str = SERVE) -> subprocess.Popen[str]:
    server = python(host, code)
    assert server.stdout is not None
    assert server.stdout.readline() == "up\n"
    return server


def dial(host: Host, to: Host, port: int = 7000) -> bool:
    said, _ = python(host, DIAL, to.address, str(port)).communicate(timeout=10)
    return said == "hello\n"


def test_hosts_have_names_and_processes_of_their_own(net: Lan) -> None:
    one, two, _ = net.hosts
    said, _ = python(one, "import os, platform; print(platform.node(), os.getppid())").communicate(timeout=10)
    assert said.split() == [one.name, "0"]
    server = serve(one)
    assert [process.pid for process in one.processes()] != []
    assert two.processes() == []
    one.off()
    assert server.wait(10) != 0
    assert one.processes() == []


def test_a_cut_link_heals(net: Lan) -> None:
    one, two, three = net.hosts
    serve(one)
    assert dial(two, one)
    two.cut()
    assert not dial(two, one)
    assert dial(three, one)
    two.heal()
    assert dial(two, one)


def test_a_firewall_lets_one_port_through(net: Lan) -> None:
    one, two, three = net.hosts
    serve(one)
    serve(two)
    assert one.listening() == {("0.0.0.0", 7000)}
    two.admit_nothing(dial=(one.address, 7000))
    assert dial(two, one)
    assert not dial(three, two)
    two.admit_nothing(dial=(one.address, 7000))
    serve(three)
    assert not dial(two, three)


def test_links_are_as_fast_as_they_should_be(net: Lan) -> None:
    one, two, _ = net.hosts
    two.limit("80mbit")
    serve(one, SEND)
    before, began = one.sent_bytes(), time.monotonic()
    python(two, TAKE, one.address).communicate(timeout=20)
    assert one.sent_bytes() - before > 4 << 20
    assert time.monotonic() - began > 0.3, "80 Mbit/s carry 4 MB in 0.42 s at best"
