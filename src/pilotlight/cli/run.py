"""`pilotlight run`: a file of prompts through a model, into a file of answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from cyclopts import Group, Parameter

from pilotlight.client import checks
from pilotlight.client.console.follow import follow, say_ending
from pilotlight.client.console.options import Inputs, ModelOptions, Output, RunOptions, SamplingOptions
from pilotlight.client.llm import LLM
from pilotlight.client.pool import Pool, check_labels
from pilotlight.core.errors import ConfigError
from pilotlight.wire import Operation

_PROMPTS = Group("Prompts", sort_key=2)


def run(
    inputs: Inputs,
    /,
    *,
    output: Output,
    model: ModelOptions | None = None,
    prompt_template: Annotated[
        str | None, Parameter(group=_PROMPTS, help="Prompt from a row's fields, as in 'Claim: {claim}'.")
    ] = None,
    chat: Annotated[
        bool, Parameter(group=_PROMPTS, help="Pass prompts through the model's chat template.", negative="")
    ] = False,
    system_prompt: Annotated[str | None, Parameter(group=_PROMPTS, help="System message before each chat.")] = None,
    chat_template_kwargs: Annotated[
        str | None, Parameter(group=_PROMPTS, help="JSON object of arguments for the chat template.")
    ] = None,
    truncate_prompt_tokens: Annotated[
        int | None, Parameter(group=_PROMPTS, help="Keep a prompt's last tokens; -1: as many as fit.")
    ] = None,
    labels: Annotated[
        str | None, Parameter(group=_PROMPTS, help="A,B,C: compare these as answers, instead of generating.")
    ] = None,
    label_scoring: Annotated[
        Literal["sum", "mean"], Parameter(group=_PROMPTS, help="Add or average over a label's tokens.")
    ] = "sum",
    sampling: SamplingOptions | None = None,
    options: RunOptions | None = None,
) -> int:
    """Run a file of prompts through a model.

    Rows have `prompt` or `messages`, or any fields with --prompt-template. Line n of the output answers row n of the
    input. After an interruption of any kind the same command goes on where it was.
    """
    model = model or ModelOptions()
    options = options or RunOptions()
    operation = Operation(
        kind="echo" if model.runtime == "echo" else "generate" if labels is None else "classify",
        prompt_template=prompt_template,
        chat=chat,
        system_prompt=system_prompt,
        chat_template_kwargs=_json_object(chat_template_kwargs),
        sampling=(sampling or SamplingOptions()).params().to_wire(),
        labels=[] if labels is None else check_labels([label.strip() for label in labels.split(",")]),
        label_scoring=label_scoring,
        truncate_prompt_tokens=truncate_prompt_tokens,
    )
    if truncate_prompt_tokens is not None and truncate_prompt_tokens < 1 and truncate_prompt_tokens != -1:
        raise ConfigError(f"--truncate-prompt-tokens must be 1 or more, or -1, not {truncate_prompt_tokens}")
    checks.check_model(model.model, runtime=model.runtime)
    rows = checks.first_rows(inputs)
    if model.runtime != "echo":
        checks.check_rows(rows, prompt_template)
    return run_files(model.llm(), operation, inputs, output, options)


def run_files(llm: LLM, operation: Operation, inputs: list[Path], output: Path, options: RunOptions) -> int:
    """Run a job between files as every verb does: checks, dry run, progress, summary. Returns the exit code."""
    checks.check_output(output, inputs)
    checks.check_numbers(limit=options.limit, workers=options.workers, max_attempts=options.max_attempts)
    if options.overwrite and options.retry_errors is not None:
        raise ConfigError("--overwrite starts afresh and --retry-errors keeps what is there: give one of them")
    if options.dry_run:
        from pilotlight.client.console.dry_run import dry_run

        return dry_run(llm, operation, inputs, output, options)
    ending = follow(
        Pool(options.workers),
        lambda pool: pool.run_files(
            llm,
            operation,
            inputs,
            output,
            limit=options.limit,
            overwrite=options.overwrite,
            retry_errors=options.retried,
            max_attempts=options.max_attempts,
            name=output.name,
            arguments={"argv": sys.argv[1:]},
        ),
        output=output,
        quiet=options.quiet,
        verbose=options.verbose,
    )
    say_ending(ending, output, quiet=options.quiet)
    return ending.exit_code


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--chat-template-kwargs is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"--chat-template-kwargs must be a JSON object, not {text}")
    return cast("dict[str, Any]", value)
