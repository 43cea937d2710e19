"""What an agent says, as the event that the manager takes in: one translation for every virtual world."""

from __future__ import annotations

from pilotlight.core import decisions as do
from pilotlight.core import events as ev


def said(worker_id: str, decision: do.AgentDecision) -> ev.ManagerEvent | None:
    """The event that a decision of a worker's agent becomes at the manager.

    None: it is not said, or (`SendResident`) it takes the replica itself to say it.
    """
    match decision:
        case do.SendCopy(variant_id, level, size, took_s):
            return ev.CopyReported(worker_id, ev.CopyFact(variant_id, level, size, took_s))
        case do.AskSource(variant_id):
            return ev.SourceAsked(worker_id, variant_id)
        case do.SendCopyFailed(variant_id, _, source, _):
            return ev.CopyFailedAt(worker_id, variant_id, source)
        case do.SendReturned(lease_id, spans):
            return ev.RowsReturned(worker_id, lease_id, spans)
        case do.SendStopped(device_id, variant_id, _):
            return ev.ReplicaStopped(worker_id, device_id, variant_id)
        case do.SendDied(device_id, variant_id, _, rows, started, reason, kind):
            return ev.ReplicaDied(worker_id, device_id, variant_id, rows, started, reason, kind)
        case do.SendLoadFailed(device_id, variant_id, _, kind, reason):
            return ev.LoadFailed(worker_id, device_id, variant_id, kind == "no_room", reason, kind == "crowded")
        case do.SendLeaving(grace_s, reason):
            return ev.WorkerLeaving(worker_id, reason, grace_s)
        case _:
            return None
