"""What workers say, as the scheduler's events have it."""

from __future__ import annotations

from pilotlight.core import events as ev
from pilotlight.core.errors import Retry, verdict
from pilotlight.core.model import Device, Variant
from pilotlight.core.transitions import Level, ReplicaState
from pilotlight.manager.environment import Verdict
from pilotlight.messages import Copy, Died, Join, LoadFailed, Resident
from pilotlight.wire import Context


def variant_of(variant_id: str, context: Context) -> Variant:
    """A variant as the machines know it."""
    has_files = context.model_path is not None
    return Variant(variant_id, context.name, context.memory_bytes, has_files=has_files, runtime=context.runtime)


def contexts_in(join: Join) -> dict[str, Context]:
    """The contexts that a worker's inventory describes, by variant."""
    return {item.variant: item.context for item in [*join.residents, *join.copies] if item.context is not None}


def joined(join: Join, contexts: dict[str, Context], verdict: Verdict | None = None) -> ev.WorkerJoined:
    """A worker joined. What it holds of variants that `contexts` does not know is passed over: nobody can want it.
    verdict: on its environment; None: nothing speaks against it."""
    verdict = verdict or Verdict()
    residents = [resident for resident in join.residents if resident.variant in contexts]
    copies = [copy for copy in join.copies if copy.variant in contexts]
    variants = dict.fromkeys([item.variant for item in [*residents, *copies]])
    return ev.WorkerJoined(
        join.worker,
        join.pid,
        join.host,
        tuple(
            Device(
                device.id,
                device.kind,
                device.memory_bytes,
                is_host=device.type == "cpu",
                lacks=tuple(verdict.lacks.get(device.id, {}).items()),
            )
            for device in join.devices
        ),
        tuple(replica_fact(resident) for resident in residents),
        tuple(copy_fact(copy) for copy in copies),
        tuple(variant_of(variant_id, contexts[variant_id]) for variant_id in variants),
        join.memory_bytes,
        join.serves is not None,
        tuple(about(join, verdict)),
        join.cache_name,
    )


def about(join: Join, verdict: Verdict) -> list[str]:
    """Sentences on a worker's cache and environment, for stories."""
    told: list[str] = []
    if join.cache is not None:
        told.append(f"its cache is {join.cache.text}")
    if join.environment is not None:
        told.append(f"it has {join.environment.text}")
    return [*told, *verdict.sentences]


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
