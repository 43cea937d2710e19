"""How near the simulated time of a calibrated scenario comes to the real one, per job and in all."""

from __future__ import annotations

from dataclasses import dataclass

from pilotlight.core.transitions import JobState
from pilotlight.sim import trial
from pilotlight.sim.calibrate import Calibrated
from pilotlight.sim.cluster import Cluster

ERROR_MAX = 0.1
"""A simulated time that is off by more, as a part of the real one, is too far."""

GIVE_UP = 10.0
"""A simulated run that takes so many times what the real one took is given up."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Seconds that something took really and in the simulator. simulated_s: None where that did not end."""

    name: str
    rows: int
    real_s: float
    simulated_s: float | None

    @property
    def error(self) -> float | None:
        """How much longer the simulated one took, as a part of the real one."""
        if self.simulated_s is None or self.real_s <= 0:
            return None
        return self.simulated_s / self.real_s - 1.0


def play(found: Calibrated) -> Cluster:
    """Simulate the scenario as it is, to its end or to `GIVE_UP` times what the run took."""
    took_s = max(job.ended_s or 0.0 for job in found.jobs) - found.began_s
    return trial.play(found.scenario, GIVE_UP * took_s)


def compare(found: Calibrated) -> list[Compared]:
    """Each job of the run and, where there are several, the time from the first's beginning to the last's end."""
    outputs = list(play(found).outputs.values())
    order = sorted(range(len(found.jobs)), key=lambda n: found.scenario.jobs[n].at_s)
    compared: list[Compared] = []
    ends: list[float | None] = []
    for place, n in enumerate(order):
        job, output = found.jobs[n], outputs[place] if place < len(outputs) else None
        ended_s = output.ended_s if output is not None and output.ended is JobState.COMPLETED else None
        ends.append(ended_s)
        simulated_s = ended_s - output.began_s if output is not None and ended_s is not None else None
        compared.append(Compared(job.name or job.job_id, job.rows, (job.ended_s or 0.0) - job.at_s, simulated_s))
    if len(compared) > 1:
        jobs = found.jobs
        first_s = min(job.at_s for job in jobs)
        real_s = max(job.ended_s or 0.0 for job in jobs) - first_s
        known = [end for end in ends if end is not None]
        whole_s = max(known) - (first_s - found.began_s) if len(known) == len(ends) else None
        compared.append(Compared("all", sum(job.rows for job in jobs), real_s, whole_s))
    return compared
