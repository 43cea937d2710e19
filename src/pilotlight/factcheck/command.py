"""`pilotlight factcheck verify`: a verdict with probabilities for every claim of a file, and how right they are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from pilotlight.client import checks
from pilotlight.client.console.follow import Ending, Step, follow, say, say_ending
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
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="JSONL file of verdicts to write.")],
    model: Annotated[str | None, Parameter(help="Model folder, or Hugging Face id.")] = None,
    bundled_model: Annotated[bool, Parameter(help="Use the tiny model that comes along.", negative="")] = False,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit of a Hugging Face id.")] = None,
    dtype: Annotated[str, Parameter(help="Type of the weights; auto: the checkpoint's own.")] = "auto",
    max_model_len: Annotated[int | None, Parameter(help="Longest prompt and label; unset: the model's own.")] = None,
    trust_remote_code: Annotated[bool, Parameter(help="Run code that comes with the model.", negative="")] = False,
    truncate_prompt_tokens: Annotated[
        int | None, Parameter(help="Keep the last N tokens of a longer prompt; -1: as many as fit.")
    ] = None,
    label_scoring: Annotated[Literal["sum", "mean"], Parameter(help="Add or average over a label's tokens.")] = "sum",
    max_attempts: Annotated[int, Parameter(help="Tries of a row that kills its replica, alone each time.")] = 3,
    workers: Annotated[int | None, Parameter(help="Workers; unset: one per GPU, else half of the CPUs.")] = None,
    limit: Annotated[int | None, Parameter(help="Only the first claims.")] = None,
    overwrite: Annotated[bool, Parameter(help="Start afresh, whatever is there.", negative="")] = False,
    retry_errors: Annotated[
        tuple[str, ...] | None, Parameter(help="Do error rows again; =KIND: only those.", negative="")
    ] = None,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], help="Show why.", negative="")] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], help="Say only what went wrong.", negative="")] = False,
) -> int:
    """Verify a file of claims: SUPPORTS, REFUTES or NOT ENOUGH INFO for each, with probabilities.

    FEVER's own file names its evidence but does not hold the sentences; such claims are judged without evidence, and
    the summary says so. After an interruption the same command goes on where it was.
    """
    if bundled_model == (model is not None):
        raise ConfigError("give either --model or --bundled-model")
    name = str(bundled.model_folder()) if model is None else model
    llm = LLM(name, revision=revision, dtype=dtype, max_model_len=max_model_len, trust_remote_code=trust_remote_code)
    checks.check_model(name, runtime=llm.wire.runtime)
    checks.check_output(output, [claims])
    checks.check_numbers(limit=limit, workers=workers, max_attempts=max_attempts)
    _check_claims(claims)
    retried = None if retry_errors is None else [] if "" in retry_errors else list(retry_errors)
    ending = run_claims(
        claims,
        output,
        llm,
        Pool(workers),
        label_scoring=label_scoring,
        truncate_prompt_tokens=truncate_prompt_tokens,
        quiet=quiet,
        verbose=verbose,
        options={"limit": limit, "overwrite": overwrite, "retry_errors": retried, "max_attempts": max_attempts},
    )
    return ending.exit_code


def run_claims(
    claims: Path,
    output: Path,
    llm: LLM,
    pool: Pool,
    *,
    label_scoring: Literal["sum", "mean"] = "sum",
    truncate_prompt_tokens: int | None = None,
    passes: int = 1,
    quiet: bool = False,
    verbose: bool = False,
    step: Step | None = None,
    options: dict[str, Any] | None = None,
) -> Ending:
    """Prepare the claims, classify them, and print the summary with the score. `options`: of `Pool.run_files`."""
    operation = Operation(
        kind="classify",
        labels=list(LABELS),
        label_scoring=label_scoring,
        truncate_prompt_tokens=truncate_prompt_tokens,
    )
    prepared = prepare(claims, output, passes=passes)
    arguments = {"argv": sys.argv[1:], "claims": str(claims.absolute())}
    try:
        ending = follow(
            pool,
            lambda started: started.run_files(
                llm, operation, prepared.paths, output, name=output.name, arguments=arguments, **(options or {})
            ),
            output=output,
            quiet=quiet,
            verbose=verbose,
            step=step,
        )
    finally:
        prepared.remove()
    _say(ending, output, prepared, quiet=quiet)
    return ending


def _say(ending: Ending, output: Path, prepared: Prepared, *, quiet: bool) -> None:
    completed = ending.ended is not None and ending.ended.outcome == "completed"
    score = read_verdicts(output) if completed and not quiet else None
    more = describe(score) if score is not None else []
    missing = prepared.claims - prepared.with_evidence
    if missing and not any(name == "without evidence" for name, _ in more):
        more.append(("without evidence", f"{missing:,} of {prepared.claims:,} claims"))
    say_ending(ending, output, quiet=quiet, more=more)
    if score is not None and score.pairs:
        say("")
        say(matrix(score.pairs.items()))


def _check_claims(claims: Path) -> None:
    rows = [row for row in checks.first_rows([claims]) if isinstance(row, dict)]
    if rows and all("claim" not in row for row in rows):
        raise ConfigError(f"the rows of {claims} have no field claim; they have {', '.join(rows[0]) or 'no fields'}")
