"""`pilotlight factcheck verify`: a verdict with probabilities for every claim of a file, and how right they are."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from pilotlight.client import checks
from pilotlight.client.console.follow import Ending, Step, follow, hand_over, say, say_ending
from pilotlight.client.console.options import ModelOptions, RunOptions, Truncation
from pilotlight.client.console.pools import choose_pool
from pilotlight.client.jobs import Job
from pilotlight.client.llm import LLM
from pilotlight.client.pool import Pool
from pilotlight.core.errors import ConfigError
from pilotlight.factcheck import bundled
from pilotlight.factcheck.claims import LABELS, Prepared, prepare
from pilotlight.factcheck.score import describe, matrix, read_verdicts
from pilotlight.wire import Operation


def verify(
    claims: Annotated[Path, Parameter(help="JSONL file of claims: FEVER's format, or evidence as text.")],
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="JSONL file of verdicts to write.")] = None,
    model: ModelOptions | None = None,
    bundled_model: Annotated[bool, Parameter(help="Use the tiny model that comes along.", negative="")] = False,
    truncate_prompt_tokens: Truncation = None,
    label_scoring: Annotated[Literal["sum", "mean"], Parameter(help="Add or average over a label's tokens.")] = "sum",
    options: RunOptions | None = None,
) -> int:
    """Verify a file of claims: SUPPORTS, REFUTES or NOT ENOUGH INFO for each, with probabilities.

    FEVER's own file names its evidence but does not hold the sentences; such claims are judged without evidence, and
    the summary says so. After an interruption the same command goes on where it was.
    """
    model, options = model or ModelOptions(), options or RunOptions()
    if model.runtime == "echo":
        raise ConfigError("--runtime echo gives rows back, and no verdicts: factcheck verify needs a model")
    if bundled_model == (model.model is not None):
        raise ConfigError("give either --model or --bundled-model")
    name = str(bundled.model_folder()) if bundled_model else model.model
    checks.check_model(name, runtime=model.runtime)
    checks.check_truncation(truncate_prompt_tokens)
    _check_claims(claims)
    options.check()
    if output is not None:
        checks.check_output(output, [claims])
        checks.check_retried(output, options.retried)
    llm = model.context(name or "")
    operation = _operation(label_scoring, truncate_prompt_tokens)
    if options.dry_run:
        return _dry_run(claims, output, llm, operation, options)
    if output is None:
        raise ConfigError("--output is needed: the file of verdicts to write (only --dry-run does without)")
    return run_claims(claims, output, llm, options, operation=operation).exit_code


def _operation(label_scoring: Literal["sum", "mean"] = "sum", truncate_prompt_tokens: int | None = None) -> Operation:
    return Operation(
        kind="classify",
        labels=list(LABELS),
        label_scoring=label_scoring,
        truncate_prompt_tokens=truncate_prompt_tokens,
    )


def _dry_run(claims: Path, output: Path | None, llm: LLM, operation: Operation, options: RunOptions) -> int:
    from pilotlight.client.console.dry_run import dry_run

    with tempfile.TemporaryDirectory(prefix="pilotlight-claims-") as folder:
        prepared = prepare(claims, output or Path(folder) / "verdicts.jsonl")
        try:
            return dry_run(llm, operation, prepared.paths, output, options)
        finally:
            prepared.remove()


def run_claims(
    claims: Path,
    output: Path,
    llm: LLM,
    options: RunOptions,
    *,
    operation: Operation | None = None,
    passes: int = 1,
    watch_s: float = 0.5,
    step: Step | None = None,
    planned: Callable[[], set[str]] = set,
) -> Ending:
    """Prepare the claims, classify them, and print the summary with the score. See `Follower` for `step` and
    `planned`."""
    wanted = operation or _operation()
    pool = choose_pool(options, watch_s=watch_s)
    prepared = prepare(claims, output, passes=passes)
    arguments = {"argv": sys.argv[1:], "claims": str(claims.absolute())}

    def submit(pool: Pool, again: bool) -> Job[Any]:
        how = options.of_job(again=again)
        return pool.run_files(llm, wanted, prepared.paths, output, name=output.name, arguments=arguments, **how)

    goes_on = False
    try:
        if options.detach:
            ending = hand_over(pool, submit, quiet=options.quiet)
        else:
            ending = follow(
                pool,
                submit,
                output=output,
                quiet=options.quiet,
                verbose=options.verbose,
                step=step,
                planned=planned,
            )
        goes_on = ending.goes_on
    finally:
        prepared.remove(keep=goes_on)  # a job that goes on without us may have to read them again
    _say(ending, output, prepared, quiet=options.quiet)
    return ending


def _say(ending: Ending, output: Path, prepared: Prepared, *, quiet: bool) -> None:
    completed = ending.ended is not None and ending.ended.outcome == "completed"
    score = read_verdicts(output) if completed and not quiet else None
    missing = prepared.claims - prepared.with_evidence
    more = [("without evidence", f"{missing:,} of the {prepared.claims:,} claims in the input")] if missing else []
    say_ending(ending, output, quiet=quiet, more=more if score is None else describe(score))
    if score is not None and score.pairs:
        say("")
        say(matrix(score.pairs.items()))


def _check_claims(claims: Path) -> None:
    rows = [row for row in checks.first_rows([claims]) if isinstance(row, dict)]
    if rows and all("claim" not in row for row in rows):
        raise ConfigError(f"the rows of {claims} have no field claim; they have {', '.join(rows[0]) or 'no fields'}")
