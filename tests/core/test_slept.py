"""A machine that did not run for a while (stopped, suspended, on a stalled disk) blames nobody for the silence."""

from __future__ import annotations

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.agent import Agent
from pilotlight.core.allocation import Options
from pilotlight.core.model import Device, Variant
from pilotlight.core.residence import LOAD_S_MAX
from pilotlight.core.scheduler import Scheduler
from pilotlight.core.transitions import Level

GPU = Device("gpu0", "kind", 10)
VARIANT = Variant("v", "v", 5)


def ticked(machine: Scheduler | Agent, start_s: float, stop_s: float) -> list[object]:
    """What a machine decides by its clock alone."""
    ticks = range(int((stop_s - start_s) * 4))
    return [decision for n in ticks for decision in machine.handle(ev.Tick(), start_s + n / 4)]


def test_a_manager_that_slept_drops_nobody_for_what_it_did_not_hear() -> None:
    manager = Scheduler(Options(silence_s=10.0))
    manager.handle(ev.WorkerJoined("w", 1, "host", (GPU,)), 0.0)
    assert ticked(manager, 0.25, 4.0) == []
    assert ticked(manager, 60.0, 66.0) == []
    manager.handle(ev.WorkerHeard("w", 0), 66.0)
    assert ticked(manager, 66.0, 75.0) == []
    dropped = ticked(manager, 75.0, 77.0)
    assert [decision for decision in dropped if isinstance(decision, do.DropWorker)]


def agent_with_rows() -> Agent:
    agent = Agent("w", (GPU,), 10.0)
    agent.handle(ev.ManagerFound(1), 0.0)
    agent.handle(ev.WantsChanged(1, 1, (("gpu0", VARIANT, Level.LIVE),)), 0.0)
    agent.handle(ev.JobDefined("job", "v", request_timeout_s=30.0), 0.0)
    agent.handle(ev.ReplicaLive("w.1", 4, 5), 1.0)
    agent.handle(ev.LeaseGranted(1, "lease-1.1", "job", ((0, 4),)), 1.0)
    return agent


def test_an_agent_that_slept_kills_no_replica_for_what_it_did_not_hear() -> None:
    agent = agent_with_rows()
    assert ticked(agent, 1.25, 10.0) == []
    assert ticked(agent, 1000.0, 1020.0) == []
    killed = ticked(agent, 1020.0, 1022.0)
    assert do.StopReplica("w.1", kill=True) in killed


def test_nor_ends_a_load_a_copy_or_itself() -> None:
    agent = Agent("w", (GPU,), 10.0)
    files = Variant("f", "f", 5, has_files=True)
    agent.handle(ev.ManagerFound(1), 0.0)
    agent.handle(ev.WantsChanged(1, 1, (("gpu0", VARIANT, Level.LIVE), ("", files, Level.PARKED))), 0.0)
    agent.handle(ev.SourceNamed(1, "f", ""), 0.0)
    agent.handle(ev.ManagerLost(), 0.0)
    assert ticked(agent, 0.25, 5.0) == []
    assert ticked(agent, LOAD_S_MAX + 5.0, LOAD_S_MAX + 10.0) == []
    assert isinstance(ticked(agent, LOAD_S_MAX + 10.0, LOAD_S_MAX + 12.0)[-1], do.Exit)


def test_a_drain_ends_when_it_ends() -> None:
    agent = agent_with_rows()
    agent.handle(ev.DrainAsked(20.0, "preempted"), 2.0)
    assert isinstance(ticked(agent, 100.0, 100.5)[-1], do.Exit)


def test_who_listened_without_a_tick_did_not_sleep() -> None:
    agent = agent_with_rows()
    assert agent.due_s == 31.0
    agent.listened(30.0)
    assert agent.handle(ev.Tick(), 30.5) == []
    agent.listened(31.0)
    assert agent.handle(ev.Tick(), 31.0) == [do.StopReplica("w.1", kill=True)]
    assert agent.due_s < 40.0
    manager = Scheduler(Options(silence_s=10.0))
    manager.handle(ev.WorkerJoined("w", 1, "host", (GPU,)), 0.0)
    manager.listened(11.0)
    assert any(isinstance(decision, do.DropWorker) for decision in manager.handle(ev.Tick(), 11.0))
