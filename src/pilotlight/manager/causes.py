"""Which step led to an event, told by the ids in it: the answer to a decision names what that decision was about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pilotlight.core import decisions as do
from pilotlight.core import events as ev

KEPT_MAX = 256
"""What was decided about a worker and never answered is forgotten after so much else of its kind."""


class Causes:
    """Learns each step's decisions; `of` says which step an event answers, if that can be told. Each answer is given
    once where a decision has one answer."""

    def __init__(self) -> None:
        self._wants: dict[str, dict[tuple[str, str, str], int]] = {}
        """By worker: since which step each (device, variant, level) has been wanted."""
        self._unwanted: dict[str, dict[tuple[str, str, str], int]] = {}
        """And since which step no more."""
        self._revokes: dict[str, dict[str, int]] = {}
        """By worker and lease."""
        self._reads: dict[str, int] = {}
        self._failures: dict[tuple[str, int], int] = {}

    def learn(self, n: int, decisions: Sequence[do.ManagerDecision]) -> None:
        """Step n decided this."""
        for decision in decisions:
            match decision:
                case do.SendWants(worker_id):
                    before = self._wants.get(worker_id, {})
                    wants = [(device_id, variant_id, level.value) for device_id, variant_id, level in decision.wants]
                    self._wants[worker_id] = {key: before.get(key, n) for key in wants}
                    unwanted = self._unwanted.setdefault(worker_id, {})
                    for key in wants:
                        unwanted.pop(key, None)
                    for key in before.keys() - self._wants[worker_id].keys():
                        unwanted[key] = n
                    _shorten(unwanted)
                case do.RevokeRows(worker_id, lease_id):
                    revokes = self._revokes.setdefault(worker_id, {})
                    revokes[lease_id] = n
                    _shorten(revokes)
                case do.ReadRows(job_id):
                    self._reads[job_id] = n
                case do.WriteFailure(job_id, index):
                    self._failures[job_id, index] = n
                case do.EndJob(job_id):
                    self._reads.pop(job_id, None)
                case _:
                    pass

    def of(self, event: ev.ManagerEvent) -> int | None:
        """The step that this event answers."""
        match event:
            case ev.RowsWritten(lease_id="") if len(event.spans) == 1:
                return self._failures.pop((event.job_id, event.spans[0][0]), None)
            case ev.RowsReturned():
                return self._revokes.get(event.worker_id, {}).pop(event.lease_id, None)
            case ev.RowsRead():
                return self._reads.pop(event.job_id, None)
            case ev.ReplicaReported(worker_id, fact):
                return self._wants.get(worker_id, {}).get((fact.device_id, fact.variant_id, "live"))
            case ev.LoadFailed():
                return self._wants.get(event.worker_id, {}).get((event.device_id, event.variant_id, "live"))
            case ev.ReplicaStopped():
                return self._unwanted.get(event.worker_id, {}).pop((event.device_id, event.variant_id, "live"), None)
            case ev.CopyReported(worker_id, fact):
                wants = (self._wants if fact.bytes else self._unwanted).get(worker_id, {})
                of_variant = [key for key in wants if key[1] == fact.variant_id]
                step = max((wants[key] for key in of_variant), default=None)
                if not fact.bytes:
                    for key in of_variant:
                        if key[2] == fact.level.value:
                            del wants[key]
                return step
            case ev.WorkerLost():
                for by_worker in (self._wants, self._unwanted, self._revokes):
                    by_worker.pop(event.worker_id, None)
                return None
            case _:
                return None


def _shorten(steps: dict[Any, int]) -> None:
    """Forget the oldest."""
    while len(steps) > KEPT_MAX:
        del steps[next(iter(steps))]
