"""What is checked before anything is started: one clear sentence each, as a `ConfigError`."""

from __future__ import annotations

import math
import os
import stat
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pilotlight.core.errors import ConfigError, InputError, RequestError

ROWS_LOOKED_AT = 20


def check_output(output: Path, inputs: Sequence[Path]) -> None:
    """The output's folder is there and can be written, and the output is none of the inputs."""
    for path in (output, *inputs):
        if is_own_view(path):
            raise ConfigError(f"{path} means another file in another process: name the file itself")
    folder = output.absolute().parent
    _enter(folder, f"the output's folder {folder}")
    if not folder.is_dir():
        raise ConfigError(f"the output's folder {folder} does not exist; make it first (mkdir -p {folder})")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"the output's folder {folder} can't be written")
    if output.is_dir():
        raise ConfigError(f"the output {output} is a folder; name a file")
    for path in inputs:
        if output.absolute() == path.absolute() or (output.exists() and path.exists() and output.samefile(path)):
            raise ConfigError(f"the output {output} is also an input; name another file")


def is_own_view(path: Path) -> bool:
    """Whether a path leads through what each process sees differently: its own descriptors and folder."""
    text = os.path.normpath(path.absolute())
    return text.startswith(("/proc/", "/dev/fd/")) or text in {"/dev/stdout", "/dev/stderr", "/dev/stdin"}


def check_retried(output: Path, kinds: Sequence[str] | None) -> None:
    """A finished output with error rows has some of the kinds that shall be done again."""
    from pilotlight.io.report import read_report

    report = read_report(str(output)) if kinds and output.exists() else None
    there = report.get("errors") if report else None
    if not isinstance(there, dict) or not there:
        return
    listed = cast("dict[str, int]", there)
    if unknown := [kind for kind in kinds or () if kind not in listed]:
        has = ", ".join(f"{count:,} {kind}" for kind, count in listed.items())
        raise ConfigError(f"{output} has no error rows of kind {', '.join(unknown)} to do again; it has {has}")


def _enter(path: Path, what: str) -> None:
    """Refuse what lies below a folder that this user may not enter; what does not exist is another matter."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"{what} can't be used: {error.strerror}") from error


def first_rows(inputs: Sequence[Path]) -> list[dict[str, Any] | RequestError]:
    """The first rows, or what is wrong with each. Raises `InputError` for what can't be read."""
    from pilotlight.io.jsonl import first_rows as read_first

    for path in inputs:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise InputError(f"the input {path} does not exist") from None
        except OSError as error:
            raise InputError(f"the input {path} can't be read: {error.strerror}") from error
        if stat.S_ISDIR(mode):
            raise InputError(f"the input {path} is a folder; name its files")
        if not stat.S_ISREG(mode):
            raise InputError(f"the input {path} is a pipe or device and can't be read twice; write it to a file first")
    return read_first([str(path) for path in inputs], ROWS_LOOKED_AT)


def check_model(model: str | None, *, runtime: str) -> None:
    """A model is named, and if it looks like a folder, it is one."""
    if runtime == "echo":
        return
    if not model:
        raise ConfigError("--model is needed: a model folder, a Hugging Face id, or a URL (https://, s3://)")
    if "://" in model:
        return  # the manager looks
    path = Path(model).expanduser()
    _enter(path / "config.json", f"the model folder {model}")
    looks_like_path = model.startswith(("/", ".", "~")) or model.count("/") > 1
    if looks_like_path and not path.is_dir():
        raise ConfigError(f"the model folder {model} does not exist")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(f"{model} is no model folder: it has no config.json")


def template_fields(template: str) -> list[str]:
    """The row's fields that a `str.format` template uses. Raises `ConfigError` for a broken template."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        message = f"--prompt-template {template!r} can't be read: {error} (braces that are meant as such are doubled)"
        raise ConfigError(message) from error
    fields = list(dict.fromkeys(name.split(".")[0].split("[")[0] for name in names))
    if not fields or "" in fields or any(field.isdigit() for field in fields):
        raise ConfigError(f"--prompt-template {template!r} must name fields of the rows, as in 'Claim: {{claim}}'")
    return fields


def check_rows(rows: Sequence[dict[str, Any] | RequestError], template: str | None) -> None:
    """The first rows have what the prompt is made of; rows that are broken in themselves are left to become errors."""
    wanted = template_fields(template) if template is not None else []
    good = [row for row in rows if isinstance(row, dict)]
    if not good:
        return
    if template is not None:
        for name in wanted:
            if all(name not in row for row in good):
                message = f"the rows have no field {name!r} for --prompt-template; they have {_fields(good[0])}"
                raise ConfigError(message)
    elif all(not _PROMPT_FIELDS & row.keys() for row in good):
        message = f"the rows have neither prompt nor messages (they have {_fields(good[0])}); give --prompt-template"
        raise ConfigError(message)


def are_chats(rows: Sequence[dict[str, Any] | RequestError], template: str | None) -> bool:
    """Whether any of the first rows is a conversation by itself, or none can be read to tell."""
    good = [row for row in rows if isinstance(row, dict)]
    return not good or (template is None and any("messages" in row for row in good))


_PROMPT_FIELDS = {"prompt", "messages", "prompt_token_ids"}


def _fields(row: dict[str, Any]) -> str:
    return ", ".join(row) or "no fields"


def check_truncation(tokens: int | None, name: str = "--truncate-prompt-tokens") -> None:
    """How many of a prompt's last tokens are kept."""
    if tokens is not None and tokens < 1 and tokens != -1:
        raise ConfigError(f"{name} must be 1 or more, or -1 for as many as fit, not {tokens}")


def check_numbers(*, limit: int | None, workers: int | None, max_attempts: int) -> None:
    """Counts are 1 or more."""
    named = (("--limit", limit, 0), ("--workers", workers, 1), ("--max-attempts", max_attempts, 1))
    for name, value, least in named:
        if value is not None and value < least:
            raise ConfigError(f"{name} must be {least} or more, not {value}")


def check_share(
    weight: float, request_timeout_s: float, names: tuple[str, str] = ("weight", "request_timeout_s")
) -> None:
    """A job's share and patience are above 0."""
    for name, value in zip(names, (weight, request_timeout_s), strict=True):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} must be above 0, not {value:g}")


def check_labels(labels: Sequence[str]) -> list[str]:
    """The labels as a list. Raises `ConfigError` unless they are two or more different texts."""
    given: Sequence[Any] = labels
    if isinstance(labels, str) or any(not isinstance(label, str) or not label for label in given):
        raise ConfigError(f"labels must be a list of texts that are not empty, not {labels!r}")
    if len(labels) < 2:
        raise ConfigError(f"classify compares at least 2 labels; there is only {', '.join(labels) or 'none'}")
    doubled = sorted({label for label in labels if list(labels).count(label) > 1})
    if doubled:
        raise ConfigError(f"labels must be different; {', '.join(doubled)} is given more than once")
    return list(labels)
