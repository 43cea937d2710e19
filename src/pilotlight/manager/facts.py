"""What workers say, as the scheduler's events have it."""

from __future__ import annotations

from pilotlight.core import events as ev
from pilotlight.core.errors import Retry, verdict
from pilotlight.core.model import Device, Variant
from pilotlight.core.transitions import Level, ReplicaState
from pilotlight.messages import Copy, Died, Join, LoadFailed, Resident
from pilotlight.wire import Context


def variant_of(variant_id: str, context: Context) -> Variant:
    """A variant as the machines know it."""
    return Variant(variant_id, context.name, context.memory_bytes, has_files=context.model_path is not None)


def contexts_in(join: Join) -> dict[str, Context]:
    """The contexts that a worker's inventory describes, by variant."""
    return {item.variant: item.context for item in [*join.residents, *join.copies] if item.context is not None}


def joined(join: Join, contexts: dict[str, Context]) -> ev.WorkerJoined:
    """A worker joined. What it holds of variants that `contexts` does not know is passed over: nobody can want it."""
    residents = [resident for resident in join.residents if resident.variant in contexts]
    copies = [copy for copy in join.copies if copy.variant in contexts]
    variants = dict.fromkeys([item.variant for item in [*residents, *copies]])
    return ev.WorkerJoined(
        join.worker,
        join.pid,
        join.host,
        tuple(
            Device(device.id, device.kind, device.memory_bytes, is_host=device.type == "cpu") for device in join.devices
        ),
        tuple(replica_fact(resident) for resident in residents),
        tuple(copy_fact(copy) for copy in copies),
        tuple(variant_of(variant_id, contexts[variant_id]) for variant_id in variants),
        join.memory_bytes,
        join.serves_files,
    )


def replica_fact(resident: Resident) -> ev.ReplicaFact:
    """One replica."""
    return ev.ReplicaFact(
        resident.device,
        resident.variant,
        resident.replica,
        ReplicaState(resident.state),
        resident.wanted,
        resident.memory_bytes,
        resident.attachment_bytes,
        resident.origin,
        resident.load_s,
        resident.pid,
        resident.stages,
    )


def copy_fact(copy: Copy) -> ev.CopyFact:
    """One copy."""
    return ev.CopyFact(copy.variant, Level(copy.level), copy.bytes, copy.took_s)


def died(worker_id: str, message: Died) -> ev.ReplicaDied:
    """A replica ended by itself."""
    return ev.ReplicaDied(
        worker_id, message.device, message.variant, message.rows, message.started, message.reason, message.kind
    )


def load_failed(worker_id: str, message: LoadFailed) -> ev.LoadFailed:
    """A replica could not load; what may help follows from the error's kind."""
    helps = verdict(message.kind)
    permanent, crowded = helps is Retry.NEVER, helps is Retry.LATER
    return ev.LoadFailed(worker_id, message.device, message.variant, permanent, message.reason, crowded)
