"""What must have come of a world when all its jobs are over: exact outputs, just charges, no remains.

Errors and charges only where a row, or a device, gave reason; after a rest no lease, row or idle replica is left, and
what the manager believes of its workers is what they hold.
"""

from __future__ import annotations

from pilotlight.core.transitions import JobState
from pilotlight.sim.cluster import Cluster
from pilotlight.sim.faults import DEADLY
from pilotlight.sim.output import Output
from pilotlight.sim.plan import Plan

REST_S = 8.0
"""So long after the last job nothing is left of any, nor of what is kept alive for less."""


def judge(world: Cluster, what: Plan) -> None:
    """Raises AssertionError."""
    for job_id, output in world.outputs.items():
        _judge_job(job_id, output, what)
    _judge_belief(world)
    for machine in world.machines.values():
        name, agent = machine.name, machine.agent
        assert not agent.leases, f"{name} holds leases of ended jobs: {list(agent.leases)}"
        assert not agent.jobs, f"{name} remembers ended jobs: {list(agent.jobs)}"
        waits = [copy for copy in agent.residences.copies.values() if copy.state == "making"]
        assert len(waits) <= len(machine.copies), f"{name} waits for copies that nobody makes"
        on_its_way = machine.answered_s > world.clock.now - 2 * (what.pace.message_s + what.pace.jitter_s)
        assert on_its_way or not machine.unacked, (
            f"{name} keeps results that nobody acknowledged: {list(machine.unacked)}"
        )
        if 0.0 <= what.options.keep_alive_s < REST_S / 2 and not world.scheduler.state.pinned:
            idle = [p.replica_id for p in machine.processes.values() if not p.held and p.step is None]
            assert not idle, f"{name} keeps {idle} alive for nothing"


def _judge_belief(world: Cluster) -> None:
    state = world.scheduler.state
    assert not state.leases, f"leases outlive all jobs: {list(state.leases)}"
    assert not state.jobs, f"jobs outlive their end: {list(state.jobs)}"
    assert state.workers.keys() == world.machines.keys(), (
        f"{sorted(state.workers)} are believed in and {sorted(world.machines)} are there"
    )
    for worker in state.workers.values():
        machine = world.machines[worker.worker_id]
        believed = {r.replica_id for belief in worker.devices.values() for r in belief.replicas.values()}
        assert world.links[worker.worker_id].up_s >= world.clock.now or believed == machine.processes.keys(), (
            f"{worker.worker_id} holds {sorted(machine.processes)} and is believed to hold {sorted(believed)}"
        )


def _judge_job(job_id: str, output: Output, what: Plan) -> None:
    work = output.work
    deadly = bool(DEADLY & {fault.action for fault in what.faults})
    bad = work.poison | work.hangs
    suspect = bad | set(work.outgrows)
    assert deadly or output.errors.keys() <= suspect, f"{job_id}: healthy rows became errors: {output.errors}"
    assert deadly or output.attempts.keys() <= suspect, f"{job_id}: healthy rows were charged: {output.attempts}"
    if output.ended is JobState.COMPLETED:
        whole = [(0, work.rows)] if work.rows else []
        assert output.done.spans() == whole, f"{job_id} has holes: {output.done}"
        assert bad <= output.errors.keys(), f"{job_id}: {bad - output.errors.keys()} were answered"
    elif output.ended is JobState.FAILED:
        only_bad_rows = len(suspect) == work.rows
        assert _may_fail(output.message, what, only_bad_rows), f"{job_id} failed: {output.message}"
    else:
        assert output.cancelled, f"{job_id} ended {output.ended} and nobody asked for that"


def _may_fail(message: str, what: Plan, only_bad_rows: bool) -> bool:
    """A job may fail where no device can hold its model, or none ever had a result of it."""
    acts = {fault.action for fault in what.faults}
    if "needs about" in message:
        return "small" in message or any(model.declared_bytes is not None for model in what.models)
    if "can't be loaded here" in message:
        return "unloadable device" in acts
    return only_bad_rows or bool(DEADLY & acts)
