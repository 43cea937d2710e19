"""`pilotlight run-batch`: vLLM's command line for OpenAI's batch files, answered in the same form."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pilotlight.cli.run import run_files
from pilotlight.cli.vllm import IdleOptions, RefusedOptions
from pilotlight.client import checks
from pilotlight.client.console.options import ModelOptions, RunOptions, SamplingOptions, Truncation
from pilotlight.client.places import check_paths
from pilotlight.core.errors import ConfigError
from pilotlight.wire import Operation


def run_batch(
    *,
    input_file: Annotated[Path, Parameter(name=["--input-file", "-i"], help="OpenAI batch file (JSONL).")],
    output_file: Annotated[Path, Parameter(name=["--output-file", "-o"], help="File of responses to write.")],
    model: ModelOptions | None = None,
    truncate_prompt_tokens: Truncation = None,
    sampling: SamplingOptions | None = None,
    idle: IdleOptions | None = None,
    refused: RefusedOptions | None = None,
    options: RunOptions | None = None,
) -> int:
    """Run an OpenAI batch file, with vLLM's command line.

    Each row has `custom_id`, `method`, `url` and `body`; what a body says overrides the options given here.
    """
    model, options = model or ModelOptions(), options or RunOptions()
    (refused or RefusedOptions()).check()
    checks.check_truncation(truncate_prompt_tokens)
    is_here = check_paths(options.pool or "", [input_file])
    if is_here:
        checks.check_model(model.model, runtime=model.runtime)
    rows = checks.first_rows([input_file]) if is_here else []
    good = [row for row in rows if isinstance(row, dict)]
    if good and all("body" not in row for row in good):
        raise ConfigError(f"{input_file} is no batch file: its rows have no body (they have {', '.join(good[0])})")
    given = idle.given if idle else []
    if given and not options.quiet:
        print(f"pilotlight: {', '.join(given)}: taken for vLLM's sake, without effect", file=sys.stderr)
    operation = Operation(
        kind="echo" if model.runtime == "echo" else "generate",
        sampling=(sampling or SamplingOptions()).params().to_wire(),
        truncate_prompt_tokens=truncate_prompt_tokens,
        result_format="openai",
    )
    return run_files(model.llm(), operation, [input_file], output_file, options)
