"""`--dry-run`: the first prompts as the model would get them, and what would run; nothing is started or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pilotlight.client import checks
from pilotlight.client.console.follow import say
from pilotlight.client.console.options import RunOptions
from pilotlight.client.console.summary import render
from pilotlight.client.launch import default_workers
from pilotlight.client.llm import LLM
from pilotlight.wire import JobRequest, Operation, PathInput, PathOutput

ROWS_SHOWN = 3


def dry_run(llm: LLM, operation: Operation, inputs: list[Path], output: Path, options: RunOptions) -> int:
    """Print it all on stdout. Returns the exit code."""
    from pilotlight.manager.models import resolve_request
    from pilotlight.worker import build, devices

    request = resolve_request(
        JobRequest(
            context=llm.wire,
            operation=operation,
            input=PathInput(paths=[str(path.absolute()) for path in inputs], limit=options.limit),
            output=PathOutput(path=str(output.absolute())),
        )
    )
    context = request.context
    rows = checks.first_rows(inputs)[:ROWS_SHOWN]
    good = [row for row in rows if isinstance(row, dict)]
    previews = iter(build.runtime(context.runtime).preview(context, request.operation, good) if good else [])
    for index, row in enumerate(rows):
        say(f"--- row {index}")
        say(_shown(next(previews)) if isinstance(row, dict) else f"error row: {row}")
    say("---")
    found = devices.find()
    workers = options.workers or default_workers()
    lines = [
        ("operation", request.operation.kind),
        ("model", f"{context.name} ({context.identity})"),
        ("context", f"{context.id} on {context.runtime}"),
    ]
    if request.operation.kind == "generate":
        lines.append(("sampling", _set_values(request.operation)))
    if request.operation.labels:
        labels = ", ".join(repr(label) for label in request.operation.labels)
        lines.append(("labels", f"{labels} ({request.operation.label_scoring} of log-likelihoods)"))
    lines += [
        ("workers", str(workers)),
        ("devices", ", ".join(device.kind for device in found) or "none"),
        ("output", str(output)),
        ("state", _state(output, options)),
    ]
    say(render(lines))
    return 0


def _shown(preview: dict[str, Any]) -> str:
    if preview.get("error_kind"):
        return f"error row: {preview['error_kind']}: {preview['error']}"
    return f"{preview['prompt']}\n({preview['prompt_tokens']} tokens)"


def _set_values(operation: Operation) -> str:
    values = msgspec.to_builtins(operation.sampling)
    return ", ".join(f"{name}={value!r}" for name, value in values.items() if value is not None)


def _state(output: Path, options: RunOptions) -> str:
    folder = output.with_name(output.name + ".pilotlight")
    if options.overwrite:
        return "would start afresh (--overwrite)"
    if folder.is_dir():
        return f"an earlier run left {folder}: would go on from there"
    return "the output is there already" if output.exists() else "would start"
