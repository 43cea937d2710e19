"""What workers say, as the machines hear it."""

from __future__ import annotations

from pilotlight.core.model import Device
from pilotlight.manager import facts
from pilotlight.messages import Join
from pilotlight.wire import DeviceSpec


def test_a_join_says_which_device_shares_the_hosts_memory() -> None:
    cpu = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=7)
    gpu = DeviceSpec(id="cuda:0", kind="a card", type="cuda", memory_bytes=9)
    joined = facts.joined(Join(worker="w", pid=1, host="h", devices=[cpu, gpu], memory_bytes=8), {})
    assert joined.devices == (Device("cpu", "cpu", 7, is_host=True), Device("cuda:0", "a card", 9))
