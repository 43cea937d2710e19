"""The manager's composition root: which links, pilots, sources and sinks exist, and how a job's files are opened."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from pilotlight.core.errors import InputChanged, PilotlightError
from pilotlight.engines.direct import DirectManagerLink
from pilotlight.io.fingerprint import Fingerprint
from pilotlight.io.jsonl import JsonlSource
from pilotlight.io.workfolder import JobFolder
from pilotlight.manager.jobs import JobFiles, PathJob, StreamJob, identity
from pilotlight.messages import RowsOut
from pilotlight.pilots.local import LocalProvider
from pilotlight.ports import ManagerLink, PilotProvider
from pilotlight.wire import JobRequest, PathInput, PathOutput, PoolSpec, digest

VERIFY_ROWS = 65_536


def manager_link(pool_dir: str) -> ManagerLink:
    """Where this pool's workers dial in."""
    return DirectManagerLink(f"{pool_dir}/worker.sock")


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
            _verify(source, folder)
        except BaseException:
            folder.close()
            raise
        job_id = f"job-{number}-{digest([named, sink.path])[:6]}"
        return PathJob(job_id, request, owner, rows, folder)
    except BaseException:
        rows.close()
        raise


def _verify(source: PathInput, folder: JobFolder) -> None:
    """Compare the input with what an earlier run read of it. Raises `InputChanged`."""
    known = {block: (rows, crc) for block, rows, crc in folder.input_blocks}
    if not known:
        return
    last = max(known)
    reader = JsonlSource(source.paths, limit=source.limit)
    fingerprint = Fingerprint()
    try:
        found: list[tuple[int, int, int]] = []
        while not found or found[-1][0] < last:
            chunks = reader.read(VERIFY_ROWS)
            found += [block for chunk in chunks for block in fingerprint.feed(chunk)]
            if not chunks:
                found += fingerprint.end()
                break
    finally:
        reader.close()
    seen = {block: (rows, crc) for block, rows, crc in found}
    for block, expected in sorted(known.items()):
        if seen.get(block) != expected:
            first = block * 4096 + 1
            raise InputChanged(
                f"the input is not the one that {folder.path} was begun with: rows {first} to {first + expected[0] - 1} "
                f"differ; give the old input, another output, or --overwrite"
            )
