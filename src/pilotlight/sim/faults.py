"""Faults as data, and what each does to a world: all that can befall machines, connections, the manager and jobs."""

from __future__ import annotations

from dataclasses import dataclass

from pilotlight.core import events as ev
from pilotlight.sim.cluster import Cluster
from pilotlight.sim.machine import Machine
from pilotlight.sim.process import Results, variant_of
from pilotlight.sim.spec import Kind

GB = 1_000_000_000

KINDS = {
    "big": Kind("big", 1.0, memory_bytes=24 * GB, host_bytes=64 * GB),
    "pair": Kind("big", 1.0, devices=2, memory_bytes=24 * GB, host_bytes=10 * GB),
    "half": Kind("half", 0.5, memory_bytes=14 * GB, host_bytes=16 * GB),
    "bare": Kind("half", 0.5, memory_bytes=14 * GB, host_bytes=0),
    "host": Kind("host", 0.3, memory_bytes=30 * GB, host_bytes=30 * GB, is_host=True),
    "small": Kind("small", 2.0, memory_bytes=2 * GB, host_bytes=8 * GB),
}
"""Kinds of workers; what is `small` holds no model at all."""

ACTIONS = (
    "arrive", "arrive", "depart", "warn", "vanish", "kill replica", "cut", "half cut", "stall", "pause worker",
    "suspend worker", "pause manager", "crash manager", "crash manager twice", "crash paused manager", "lose power",
    "bad device", "unloadable device", "failing copies", "heal", "pin", "unpin", "evict", "drain job", "cancel job",
    "break output", "repeat results", "stale commands",
)  # fmt: skip
DEADLY = frozenset({"bad device", "kill replica"})
"""These alone end replicas for which no row is to blame."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is done to the world. `pick`: 0 <= x < 1, which of the workers, models or jobs that are there it
    is done to; `seconds`: how long it lasts, or its notice; `detail`: a kind or a host."""

    at_s: float
    action: str
    pick: float = 0.0
    seconds: float = 0.0
    detail: str = ""


def befall(world: Cluster, fault: Fault) -> None:
    """Do a fault to a world, where there is something to do it to."""
    match fault.action:
        case "arrive":
            kind, _, host = fault.detail.partition("@")
            world.arrive(KINDS[kind], host)
        case "pause manager" | "crash manager" | "crash manager twice" | "crash paused manager" | "lose power":
            _at_manager(world, fault)
        case "pin" | "unpin" | "evict":
            model = _one(sorted(world.models), fault.pick)
            world.to_manager(lambda: _residence(world, fault.action, model))
        case "drain job" | "cancel job" | "break output":
            running = [job_id for job_id, output in world.outputs.items() if output.ended is None]
            if running and fault.pick < 0.5:
                job_id = _one(running, fault.pick * 2)
                world.to_manager(lambda: _at_job(world, fault, job_id))
        case _:
            if world.machines:
                _at_worker(world, fault, world.machines[_one(sorted(world.machines), fault.pick)])


def heal(machine: Machine) -> None:
    """A machine is sound from now on."""
    machine.bad.clear()
    machine.unloadable.clear()
    machine.copies.fail = False


def _at_manager(world: Cluster, fault: Fault) -> None:
    down_s = fault.seconds / 3
    match fault.action:
        case "pause manager":
            world.pause_manager(fault.seconds)
        case "crash manager twice":
            world.crash_manager(down_s)
            world.clock.after(down_s + fault.pick, lambda: world.crash_manager(down_s))
        case "crash paused manager":
            world.pause_manager(fault.seconds)
            world.clock.after(fault.seconds * fault.pick, lambda: world.crash_manager(down_s))
        case _:
            world.crash_manager(down_s, power=fault.action == "lose power")


def _at_job(world: Cluster, fault: Fault, job_id: str) -> None:
    if fault.action == "break output":
        world.manager(ev.JobBroken(job_id, True, "io", "no space is left"))
        world.clock.after(fault.seconds, lambda: world.resume(job_id))
    else:
        world.cancel(job_id, drain=fault.action == "drain job")


def _at_worker(world: Cluster, fault: Fault, machine: Machine) -> None:
    device_id = _one([device.device_id for device in machine.facts], fault.pick)
    match fault.action:
        case "depart":
            world.depart(machine.name)
        case "warn":
            world.depart(machine.name, grace_s=fault.seconds)
        case "vanish":
            world.vanish(machine.name)
        case "kill replica" if machine.processes:
            machine.kill_replica(_one(sorted(machine.processes), fault.pick))
        case "cut":
            world.cut(machine.name)
        case "half cut":
            half_cut(world, machine)
        case "stall":
            stall(world, machine.name, fault.seconds)
        case "pause worker":
            machine.pause(fault.seconds)
        case "suspend worker":
            machine.suspend(fault.seconds)
        case "bad device":
            machine.bad.add(device_id)
        case "unloadable device":
            machine.unloadable.add(device_id)
        case "failing copies":
            machine.copies.fail = True
        case "heal":
            heal(machine)
        case "repeat results":
            repeat_results(world, machine)
        case "stale commands":
            stale_commands(machine)
        case _:
            pass


def half_cut(world: Cluster, machine: Machine) -> None:
    """A connection breaks and only the worker notices: it is back before the manager knows."""
    link = world.links.pop(machine.name, None)
    if link is not None:
        link.open = False
        world.lost_manager(machine)


def stall(world: Cluster, name: str, seconds: float) -> None:
    """A connection carries nothing for a while, and then all that was said."""
    link = world.links.get(name)
    if link is not None:
        link.up_s = max(link.up_s, world.clock.now + seconds)
        link.down_s = max(link.down_s, world.clock.now + seconds)
        link.mute_s = link.up_s


def repeat_results(world: Cluster, machine: Machine) -> None:
    """What a worker has sent and not heard an answer to arrives twice."""
    for number, written in list(machine.unacked.items()):
        world.up(machine, Results(written, number, machine.agent.started))


def stale_commands(machine: Machine) -> None:
    """Commands of an earlier manager reach a worker late: nothing may come of them."""
    if machine.paused:
        return
    agent, name = machine.agent, machine.name
    old = agent.epoch - 1
    queued = {lease_id: lease.queue.spans() for lease_id, lease in agent.leases.items()}
    wants = {device_id: slot.wants for device_id, slot in agent.slots.items()}
    machine.hear(ev.WantsChanged(old, agent.wants_version + 1_000_000, ()))
    for lease_id in queued:
        machine.hear(ev.LeaseRevoked(old, lease_id))
    for job_id in list(agent.jobs):
        machine.hear(ev.LeaseGranted(old, f"lease-{old}.1000000", job_id, ((0, 1),)))
    left = {lease_id: lease.queue.spans() for lease_id, lease in agent.leases.items()}
    assert left == queued, f"{name} obeyed a manager that is gone about leases: {queued}, then {left}"
    now = {device_id: slot.wants for device_id, slot in agent.slots.items()}
    assert now == wants, f"{name} obeyed the wants of a manager that is gone"


def _residence(world: Cluster, action: str, model: str) -> None:
    if action == "evict":
        if model in world.scheduler.state.variants and not world.scheduler.state.jobs_of(model):
            world.manager(ev.VariantEvicted(model))
        return
    world.manager(ev.VariantPinned(variant_of(world.models[model]), on=action == "pin"))


def _one(things: list[str], pick: float) -> str:
    return things[int(pick * len(things))]
