"""The manager's composition root: which links, pilots, sources and sinks exist, and how a job's files are opened."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pilotlight.core.errors import PilotlightError
from pilotlight.engines.direct import DirectManagerLink
from pilotlight.io.journaled import JournaledSource, verify
from pilotlight.io.jsonl import JsonlSource
from pilotlight.io.workfolder import JobFolder
from pilotlight.manager.jobs import JobFiles, PathJob, StreamJob, identity
from pilotlight.messages import RowsOut
from pilotlight.pilots.local import LocalProvider
from pilotlight.poolfile import socket_path
from pilotlight.ports import ManagerLink, PilotProvider
from pilotlight.wire import JobRequest, PathInput, PathOutput, PoolSpec, digest


def manager_link(pool_dir: str, spec: PoolSpec) -> ManagerLink:
    """Where this pool's workers dial in."""
    return DirectManagerLink(socket_path(Path(pool_dir), spec, "worker.sock"))


def provider(pool_dir: str, spec: PoolSpec) -> PilotProvider:
    """Who starts this pool's workers."""
    return LocalProvider(spec.python or sys.executable, pool_dir, spec.log_dir, spec.workers)


def open_job(request: JobRequest, number: int, owner: Any, send: Callable[[RowsOut], None]) -> JobFiles:
    """Open a job's input and output. Blocks: a resumed job's input is read once to see that it is the same.

    Raises `InputError`, `OutputExists`, `OutputBusy`, `OutputError`, each before anything was changed.
    """
    source, sink = request.input, request.output
    if not isinstance(source, PathInput) or not isinstance(sink, PathOutput):
        if isinstance(source, PathInput) or isinstance(sink, PathOutput):
            raise PilotlightError("a job has files on both ends, or on neither")
        return StreamJob(f"job-{number}", request, owner, send)
    rows = JsonlSource(source.paths, limit=source.limit)
    try:
        named = identity(request)
        folder = JobFolder.open(sink, named)
        try:
            with contextlib.closing(JsonlSource(source.paths, limit=source.limit)) as again:
                verify(again, folder)
        except BaseException:
            folder.close()
            raise
        job_id = f"job-{number}-{digest([named, sink.path])[:6]}"
        return PathJob(job_id, request, owner, JournaledSource(rows, folder), folder)
    except BaseException:
        rows.close()
        raise
