"""The manager's composition root: which links, pilots, sources and sinks exist, and how a job's files are opened."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from pilotlight.core.errors import ConfigError
from pilotlight.descriptors import Shortage
from pilotlight.engines.direct import DirectManagerLink
from pilotlight.gate.invitation import path_of
from pilotlight.gate.keys import Invitations, bind_port, load_keys
from pilotlight.gate.listening import Gate
from pilotlight.io.journaled import JournaledSource, verify
from pilotlight.io.jsonl import JsonlSource
from pilotlight.io.workfolder import JobFolder
from pilotlight.manager.jobs import PathJob, StreamJob, identity
from pilotlight.messages import RowsOut
from pilotlight.pilots.local import LocalProvider
from pilotlight.poolfile import socket_path
from pilotlight.ports import ManagerLink, PilotProvider
from pilotlight.wire import JobRequest, PathInput, PathOutput, PoolSpec, digest


def open_gate(
    pool: Path, spec: PoolSpec, epoch: int, note: Callable[[str, str, str], None], shortage: Shortage
) -> tuple[Gate, Invitations] | None:
    """Where other machines dial in, and the pool files that tell them; None where the pool does not listen: then files
    that an earlier one left lead nowhere, and are removed. Raises `ConfigError`."""
    if not spec.listen:
        for role in ("worker", "client"):
            path_of(pool, role).unlink(missing_ok=True)
        return None
    keys = load_keys(pool)
    gate = Gate(bind_port(pool, spec.listen), keys, shortage)
    return gate, Invitations(pool, spec, keys, gate.port, epoch, note)


def manager_link(pool_dir: str, spec: PoolSpec, gate: Gate | None) -> ManagerLink:
    """Where this pool's workers dial in."""
    return DirectManagerLink(socket_path(Path(pool_dir), spec, "worker.sock"), gate)


def provider(pool_dir: str, spec: PoolSpec) -> PilotProvider:
    """Who starts this pool's workers."""
    return LocalProvider(spec.python or sys.executable, pool_dir, spec.log_dir, spec.workers)


def check_request(request: JobRequest) -> None:
    """Raise `ConfigError` for one that makes no sense, before anything is opened."""
    if isinstance(request.input, PathInput) != isinstance(request.output, PathOutput):
        raise ConfigError("a job has files on both ends, or on neither")


def path_job_id(request: JobRequest, number: int) -> str:
    """The name of a path job: its number, and a digest of what it does and where to."""
    assert isinstance(request.output, PathOutput)
    return f"job-{number}-{digest([identity(request), request.output.path])[:6]}"


def stream_job(request: JobRequest, number: int, send: Callable[[RowsOut], None]) -> StreamJob:
    """A job whose rows come from its client, and whose results go to it."""
    return StreamJob(f"job-{number}", request, send)


def open_path_job(request: JobRequest, job_id: str, *, again: bool = False) -> PathJob:
    """Open a job's input and output. Blocks: a resumed job's input is read once to see that it is the same.

    `again`: the pool began it before, so nothing is to be overwritten or retried once more, whatever the request says.
    Raises `InputError`, `OutputExists`, `OutputBusy`, `OutputError`, each before anything was changed.
    """
    source, sink = request.input, request.output
    assert isinstance(source, PathInput)
    assert isinstance(sink, PathOutput)
    wish = PathOutput(path=sink.path, umask=sink.umask) if again else sink
    rows = JsonlSource(source.paths, limit=source.limit)
    try:
        folder = JobFolder.open(wish, identity(request))
        try:
            with contextlib.closing(JsonlSource(source.paths, limit=source.limit)) as reread:
                verify(reread, folder)
        except BaseException:
            folder.close()
            raise
        known_upto = sum(count for _, count, _ in folder.input_blocks)
        return PathJob(job_id, request, JournaledSource(rows, folder), folder, known_upto=known_upto)
    except BaseException:
        rows.close()
        raise
