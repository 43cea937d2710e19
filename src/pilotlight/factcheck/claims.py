"""Claims as people have them, made into rows for a model.

Two forms are read, also mixed: FEVER's (`evidence` names Wikipedia pages and sentences, and holds no text), and rows
whose `evidence` is the text itself. Both have `claim`, and may have `id` and `label`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from pilotlight.core.errors import ConfigError, OutputBusy, RequestError
from pilotlight.io.jsonl import JsonlSource
from pilotlight.io.rows import decode_row

LABELS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
"""FEVER's labels; the model compares them as continuations of the prompt."""

_READ_ROWS = 4096


@dataclass
class Prepared:
    """What was read of a file of claims. `paths`: the rows for the model, in a folder that `remove` deletes.

    The folder is locked while this lives, so that a second command on the same output can't pull it away.
    """

    folder: Path
    lock: int
    paths: list[Path] = field(default_factory=list[Path])
    claims: int = 0
    with_evidence: int = 0
    labelled: int = 0

    def remove(self, *, keep: bool = False) -> None:
        """Delete the prepared rows, which can be made again; `keep`: only let another command at them."""
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self.lock)


def render_prompt(claim: str, evidence: str | None) -> str:
    """The text that a label continues; without evidence it has no such line, as in training."""
    given = f"Evidence: {evidence}\n" if evidence else ""
    return f"{given}Claim: {claim}\nVerdict:"


def evidence_text(evidence: Any) -> str | None:
    """The evidence's sentences; None where there are none, or only names of where they would be found."""
    if isinstance(evidence, str):
        return " ".join(evidence.split()) or None
    parts = cast("list[object]", evidence) if isinstance(evidence, list) else []
    sentences = [part for part in parts if isinstance(part, str)]
    return evidence_text(" ".join(sentences)) if sentences and len(sentences) == len(parts) else None


def row_for_model(row: dict[str, Any], where: str) -> dict[str, Any]:
    """The row as the model gets it. `custom_id` carries what the output must name: the row's id and custom_id, the
    label given, and whether there was evidence.

    Raises `ConfigError` for a label that is not FEVER's; a row without a claim gets no prompt and becomes an error row.
    """
    label = row.get("label")
    if label is not None and label not in LABELS:
        raise ConfigError(f"{where} has the label {label!r}; labels are {', '.join(LABELS)}")
    claim, evidence = row.get("claim"), evidence_text(row.get("evidence"))
    carried = {name: row.get(name) for name in ("id", "custom_id", "label")} | {"evidence": evidence is not None}
    kept = {name: value for name, value in carried.items() if value is not None}
    if not isinstance(claim, str) or not claim.strip():
        return {"custom_id": kept}
    return {"custom_id": kept, "prompt": render_prompt(" ".join(claim.split()), evidence)}


def prepare(claims: Path, output: Path, *, passes: int = 1) -> Prepared:
    """Write the rows for the model into a hidden folder beside the output, under the claims' own file name.

    The same claims give the same bytes at the same path, line for line, so that a rerun goes on where an interrupted
    one was, and errors name the right line. `passes`: how often the claims are written, one pass after the other.
    Raises `InputError`, `OutputBusy` and `ConfigError`.
    """
    source = JsonlSource([str(claims)])
    folder = output.absolute().with_name(f".{output.name}.claims")
    prepared = Prepared(folder, _lock(folder, output))
    path = prepared.folder / claims.name.removesuffix(".gz").removesuffix(".zst")
    prepared.paths = [path]
    try:
        lines = list(_lines(source, claims.name, prepared)) if passes > 1 else _lines(source, claims.name, prepared)
        # A manager that outlives a killed command by a second may still read the file of that name.
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            for _ in range(passes):
                file.writelines(lines)
        partial.replace(path)
    except BaseException:
        prepared.remove()
        raise
    finally:
        source.close()
    prepared.claims *= passes
    prepared.with_evidence *= passes
    prepared.labelled *= passes
    return prepared


def _lock(folder: Path, output: Path) -> int:
    folder.mkdir(exist_ok=True)
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise OutputBusy(f"another command writes {output} now") from None
    return lock


def _lines(source: JsonlSource, origin: str, prepared: Prepared) -> Iterator[bytes]:
    """A prepared line for each line of the file, an empty one for an empty one."""
    line_next = 1
    while chunks := source.read(_READ_ROWS):
        for chunk in chunks:
            yield b"\n" * (chunk.line - line_next)
            line_next = chunk.line + chunk.count
            for number, line in enumerate(chunk.blob.split(b"\n"), chunk.line):
                prepared.claims += 1
                yield _line(line, origin, number, prepared) + b"\n"


def _line(line: bytes, origin: str, number: int, prepared: Prepared) -> bytes:
    try:
        row = row_for_model(decode_row(line, origin, number), f"{origin} line {number}")
    except RequestError:
        return line.strip()
    prepared.with_evidence += row["custom_id"]["evidence"]
    prepared.labelled += "label" in row["custom_id"]
    return msgspec.json.encode(row)
