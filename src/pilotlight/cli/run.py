"""`pilotlight run`: a file of prompts through a model, into a file of answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from cyclopts import Group, Parameter

from pilotlight.client import checks
from pilotlight.client.console.follow import follow, hand_over, say_ending
from pilotlight.client.console.options import Inputs, ModelOptions, Output, RunOptions, SamplingOptions, Truncation
from pilotlight.client.console.pools import choose_pool
from pilotlight.client.jobs import Job
from pilotlight.client.llm import LLM
from pilotlight.client.places import check_paths
from pilotlight.client.pool import Pool
from pilotlight.core.errors import ConfigError
from pilotlight.wire import Operation

_PROMPTS = Group("Prompts", sort_key=2)


def run(
    inputs: Inputs,
    /,
    *,
    output: Output = None,
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
    truncate_prompt_tokens: Annotated[Truncation, Parameter(group=_PROMPTS)] = None,
    labels: Annotated[
        str | None, Parameter(group=_PROMPTS, help="A,B,C: compare these as answers, instead of generating.")
    ] = None,
    label_scoring: Annotated[
        Literal["sum", "mean"] | None,
        Parameter(group=_PROMPTS, help="Add (as by default) or average over a label's tokens."),
    ] = None,
    sampling: SamplingOptions | None = None,
    options: RunOptions | None = None,
) -> int:
    """Run a file of prompts through a model.

    Rows have `prompt` or `messages`, or any fields with --prompt-template. Line n of the output answers row n of the
    input. After an interruption of any kind the same command goes on where it was.
    """
    model = model or ModelOptions()
    sampling = sampling or SamplingOptions()
    options = options or RunOptions()
    operation = Operation(
        kind="echo" if model.runtime == "echo" else "generate" if labels is None else "classify",
        prompt_template=prompt_template,
        chat=chat,
        system_prompt=system_prompt,
        chat_template_kwargs=_json_object(chat_template_kwargs),
        sampling=sampling.params().to_wire(),
        labels=[] if labels is None else checks.check_labels([label.strip() for label in labels.split(",")]),
        label_scoring=label_scoring or "sum",
        truncate_prompt_tokens=truncate_prompt_tokens,
    )
    checks.check_truncation(truncate_prompt_tokens)
    if labels is None and label_scoring is not None:
        raise ConfigError("--label-scoring would have no effect without --labels")
    if labels is not None and sampling.given:
        raise ConfigError(f"{', '.join(sampling.given)} would have no effect with --labels: nothing is generated")
    is_here = check_paths(options.pool or "", [*inputs, *([] if output is None else [output])])
    if is_here:
        checks.check_model(model.model, runtime=model.runtime)
    rows = checks.first_rows(inputs) if is_here else []
    if is_here and model.runtime != "echo":
        checks.check_rows(rows, prompt_template)
        if not (chat or checks.are_chats(rows, prompt_template)):
            _refuse_chat_options(system_prompt, chat_template_kwargs)
    return run_files(model.llm(), operation, inputs, output, options)


def _refuse_chat_options(system_prompt: str | None, chat_template_kwargs: str | None) -> None:
    values = {"--system-prompt": system_prompt, "--chat-template-kwargs": chat_template_kwargs}
    if given := [name for name, value in values.items() if value is not None]:
        what = "prompts go to the model as they are, and no row has messages"
        raise ConfigError(
            f"{', '.join(given)} would have no effect: {what} (--chat sends prompts through the template)"
        )


def run_files(llm: LLM, operation: Operation, inputs: list[Path], output: Path | None, options: RunOptions) -> int:
    """Run a job between files as every verb does: checks, dry run, progress, summary. Returns the exit code."""
    options.check()
    is_here = check_paths(options.pool or "", [*inputs, *([] if output is None else [output])])
    if options.dry_run and not is_here:
        raise ConfigError("--dry-run looks at files of this machine: run it on that of the pool's manager")
    if is_here and output is not None:
        checks.check_output(output, inputs)
        checks.check_retried(output, options.retried)
    if options.dry_run:
        from pilotlight.client.console.dry_run import dry_run

        return dry_run(llm, operation, inputs, output, options)
    if output is None:
        raise ConfigError("--output is needed: the file to write (only --dry-run does without)")

    def submit(pool: Pool, again: bool) -> Job[Any]:
        arguments = {"argv": sys.argv[1:]}
        how = options.of_job(again=again)
        return pool.run_files(llm, operation, inputs, output, name=output.name, arguments=arguments, **how)

    pool = choose_pool(options)
    if options.detach:
        ending = hand_over(pool, submit, quiet=options.quiet)
    else:
        ending = follow(pool, submit, output=output, quiet=options.quiet, verbose=options.verbose)
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
