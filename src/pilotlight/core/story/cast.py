"""Everything that has a name in a log. Cheap to collect, so that a name can be looked up before anything is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.model import Variant
from pilotlight.core.story.records import Step


@dataclass(slots=True)
class Cast:
    """Workers, (worker, device) pairs and leases as they appeared; what jobs and variants are called, by id."""

    workers: dict[str, None] = field(default_factory=dict[str, None])
    devices: dict[tuple[str, str], None] = field(default_factory=dict[tuple[str, str], None])
    leases: dict[str, None] = field(default_factory=dict[str, None])
    jobs: dict[str, str] = field(default_factory=dict[str, str])
    variants: dict[str, str] = field(default_factory=dict[str, str])

    def take(self, step: Step) -> None:
        """Whoever appears in one step."""
        match step.event:
            case ev.WorkerJoined():
                self.workers[step.event.worker_id] = None
                for device in step.event.devices:
                    self.devices[step.event.worker_id, device.device_id] = None
                self._meet(*step.event.variants)
            case ev.JobSubmitted():
                self.jobs[step.event.job_id] = step.event.name
                self._meet(step.event.variant)
            case ev.VariantPinned(variant):
                self._meet(variant)
            case _:
                pass
        for decision in step.decisions:
            if isinstance(decision, do.GrantRows):
                self.leases[decision.lease_id] = None

    def _meet(self, *variants: Variant) -> None:
        for variant in variants:
            self.variants[variant.variant_id] = variant.name
