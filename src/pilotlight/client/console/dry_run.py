"""`--dry-run`: the first prompts as the model would get them, and what would run; nothing is started or written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from pilotlight.client import checks, lasting
from pilotlight.client.console.follow import say
from pilotlight.client.console.options import RunOptions
from pilotlight.client.console.pools import chosen_name
from pilotlight.client.console.summary import render
from pilotlight.client.launch import default_workers
from pilotlight.client.llm import LLM
from pilotlight.client.places import elsewhere
from pilotlight.poolfile import pool_folder, read_spec
from pilotlight.wire import JobRequest, Operation, PathInput, PathOutput

ROWS_SHOWN = 3
PLAIN_MAX_TOKENS = 16
"""What a plain prompt's answer may have where nobody says more; as in vLLM."""


def dry_run(llm: LLM, operation: Operation, inputs: list[Path], output: Path | None, options: RunOptions) -> int:
    """Print it all on stdout. Returns the exit code."""
    from pilotlight.manager.models import resolve_request
    from pilotlight.worker import devices

    pool = chosen_name(options)
    request = resolve_request(
        JobRequest(
            context=llm.wire,
            operation=operation,
            input=PathInput(paths=[str(path.absolute()) for path in inputs], limit=options.limit),
            output=PathOutput(path=str((output or Path(os.devnull)).absolute())),
        )
    )
    context = request.context
    rows = checks.first_rows(inputs)[: ROWS_SHOWN if options.limit is None else min(options.limit, ROWS_SHOWN)]
    good = [row for row in rows if isinstance(row, dict)]
    previews = iter(_previews(request, good))
    for index, row in enumerate(rows):
        say(f"--- row {index}")
        say(_shown(next(previews)) if isinstance(row, dict) else f"error row: {row}")
    say("---")
    found = devices.find()
    lines = [
        ("operation", request.operation.kind),
        ("model", f"{context.name} ({context.identity})"),
        ("context", f"{context.id} on {context.runtime}"),
    ]
    if request.operation.kind == "generate":
        lines.append(("sampling", _sampling(request.operation, good)))
    if request.operation.labels:
        labels = ", ".join(repr(label) for label in request.operation.labels)
        lines.append(("labels", f"{labels} ({request.operation.label_scoring} of log-likelihoods)"))
    lines += [
        ("workers", _workers(pool, options)),
        ("devices", ", ".join(device.kind for device in found) or "none"),
    ]
    if output is not None:
        lines += [("output", str(output)), ("state", _state(request, output, options))]
    say(render(lines))
    return 0


def _workers(name: str | None, options: RunOptions) -> str:
    if name is not None and elsewhere(name) is not None:
        return f"those of pool {name}"
    if name is not None:
        return f"those of pool {name} ({lasting.described(read_spec(pool_folder(name)))})"
    return str(options.workers or len(options.worker) or default_workers())


def _previews(request: JobRequest, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runtime's previews, each with `truncated`: whether the whole prompt would have been another one."""
    from pilotlight.worker import build

    if not rows:
        return []
    runtime, context, operation = build.runtime(request.context.runtime), request.context, request.operation
    shown = runtime.preview(context, operation, rows)
    if operation.truncate_prompt_tokens is None:
        return shown
    whole = runtime.preview(context, msgspec.structs.replace(operation, truncate_prompt_tokens=None), rows)
    return [
        {**cut, "truncated": cut.get("token_ids") != uncut.get("token_ids")}
        for cut, uncut in zip(shown, whole, strict=True)
    ]


def _shown(preview: dict[str, Any]) -> str:
    if preview.get("error_kind"):
        return f"error row: {preview['error_kind']}: {preview['error']}"
    cut = "; the prompt was too long, its front is cut" if preview.get("truncated") else ""
    return f"{preview['prompt']}\n({preview['prompt_tokens']} tokens{cut})"


def _sampling(operation: Operation, rows: list[dict[str, Any]]) -> str:
    values = msgspec.to_builtins(operation.sampling)
    most = values.pop("max_tokens", None)
    named = [f"{name}={value!r}" for name, value in values.items() if value is not None]
    if operation.result_format == "openai":
        named.append("unless a row's body says otherwise")
    return ", ".join([f"max_tokens={_max_tokens(operation, rows) if most is None else most}", *named])


def _max_tokens(operation: Operation, rows: list[dict[str, Any]]) -> str:
    fits, plain = "what fits", str(PLAIN_MAX_TOKENS)
    bodies = [row.get("body") or {} if operation.result_format == "openai" else row for row in rows]
    has_template = operation.prompt_template is not None
    chats = {operation.chat or (not has_template and "messages" in body) for body in bodies}
    if len(chats) == 1:
        return fits if chats.pop() else plain
    return f"{plain} ({fits} for chats)"


def _state(request: JobRequest, output: Path, options: RunOptions) -> str:
    out = os.path.realpath(output)
    folder = f"{out}.pilotlight"
    if options.overwrite:
        return "would start afresh (--overwrite)"
    if os.path.isdir(folder) and (begun := _begun(folder)) is not None:
        return _judged(request, begun, f"an earlier run left {folder}", "would go on from there")
    if not os.path.exists(out):
        return "would start"
    from pilotlight.io.report import read_report

    report = read_report(out) or {}
    redo = "would do its error rows again" if options.retry_errors is not None else "nothing would be left to do"
    return _judged(request, report.get("identity"), "the output is there already", redo)


def _begun(folder: str) -> Any:
    """The identity of the job that a working folder belongs to; None if none had begun."""
    from pilotlight.io.journal import journal_name, journal_of_name, read_journal

    epochs = sorted(epoch for name in os.listdir(folder) if (epoch := journal_of_name(name)) is not None)
    for epoch in reversed(epochs):
        if facts := read_journal(os.path.join(folder, journal_name(epoch))):
            return facts.begin.identity
    return None


def _judged(request: JobRequest, theirs: Any, found: str, same: str) -> str:
    from pilotlight.manager.jobs import identity

    # As it comes back from a file, so that it compares equal.
    ours = msgspec.json.decode(msgspec.json.encode(identity(request)))
    if not isinstance(theirs, dict):
        return f"{found}, and nothing tells what made it: would be refused (--overwrite starts afresh)"
    if theirs == ours:
        return f"{found}: {same}, if the input is the same"
    return f"{found}, made by another request: would be refused (--overwrite starts afresh)"
