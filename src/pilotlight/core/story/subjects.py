"""What a story can be about, and how people name it: `worker-1`, `worker-1/cpu`, a context, `job-1`, `lease-1.7`,
`row 12`, `job-1:12`."""

from __future__ import annotations

from dataclasses import dataclass

from pilotlight.core.story.cast import Cast


@dataclass(frozen=True, slots=True)
class WorkerSubject:
    """A worker, or one device of it."""

    worker_id: str
    device_id: str = ""


@dataclass(frozen=True, slots=True)
class ContextSubject:
    """A variant of a context."""

    variant_id: str


@dataclass(frozen=True, slots=True)
class JobSubject:
    """A job."""

    job_id: str


@dataclass(frozen=True, slots=True)
class LeaseSubject:
    """A lease."""

    lease_id: str


@dataclass(frozen=True, slots=True)
class RowSubject:
    """A row of a job, by its index."""

    job_id: str
    index: int


Subject = WorkerSubject | ContextSubject | JobSubject | LeaseSubject | RowSubject


def find(cast: Cast, name: str, *, of_job: str = "") -> list[Subject]:
    """All that go by this name; none, one, or several that are alike.

    A job goes by its id, by its id's beginning (`job-1` for `job-1-3fa9c1`) and by its name. A row is `row 12` where
    there is one job, `job-1:12` anywhere; a device `worker-1/cpu`, or its id alone. of_job: `row 12` is of this job.
    """
    head, colon, tail = name.rpartition(":")
    if name.startswith("row ") and name[4:].strip().isdigit():
        return [RowSubject(job_id, int(name[4:])) for job_id in cast.jobs if of_job in {"", job_id}]
    found: list[Subject] = []
    if name in cast.workers:
        found.append(WorkerSubject(name))
    found += [WorkerSubject(w, d) for w, d in cast.devices if name in {d, f"{w}/{d}"}]
    found += [ContextSubject(v) for v, called in cast.variants.items() if name in {v, called}]
    if name in cast.leases:
        found.append(LeaseSubject(name))
    found += [JobSubject(job_id) for job_id in jobs_named(cast, name)]
    if not found and colon and tail.isdigit():
        found += [RowSubject(job_id, int(tail)) for job_id in jobs_named(cast, head)]
    return found


def jobs_named(cast: Cast, name: str) -> list[str]:
    """The jobs that go by a name."""
    if name in cast.jobs:
        return [name]
    short = [job_id for job_id in cast.jobs if job_id.rpartition("-")[0] == name]
    return short or [job_id for job_id, called in cast.jobs.items() if called == name]


def name_of(subject: Subject) -> str:
    """A name that finds this subject and no other."""
    match subject:
        case WorkerSubject(worker_id, device_id):
            return f"{worker_id}/{device_id}" if device_id else worker_id
        case ContextSubject(variant_id):
            return variant_id
        case JobSubject(job_id):
            return job_id
        case LeaseSubject(lease_id):
            return lease_id
        case RowSubject(job_id, index):
            return f"{job_id}:{index}"


def known_names(cast: Cast) -> list[str]:
    """All names that find something, but those of rows."""
    names = [*cast.workers, *cast.jobs, *cast.variants.values(), *cast.variants, *cast.jobs.values()]
    names += [f"{worker_id}/{device_id}" for worker_id, device_id in cast.devices]
    names += [job_id.rpartition("-")[0] for job_id in cast.jobs if job_id.count("-") > 1]
    return list(dict.fromkeys([*names, *cast.leases]))
