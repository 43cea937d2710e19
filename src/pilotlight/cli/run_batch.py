"""`pilotlight run-batch`: vLLM's command line for OpenAI's batch files, answered in the same form."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pilotlight.cli.run import run_files
from pilotlight.client import checks
from pilotlight.client.console.options import ModelOptions, RunOptions, SamplingOptions
from pilotlight.core.errors import ConfigError
from pilotlight.wire import Operation


@Parameter(name="*", show=False)
@dataclass(kw_only=True)
class VllmOptions:
    """Options of `vllm run-batch` that change no answer and have no counterpart here: taken, and said to be idle."""

    served_model_name: str | None = None
    tokenizer_mode: str | None = None
    load_format: str | None = None
    tensor_parallel_size: Annotated[int | None, Parameter(name=["--tensor-parallel-size", "-tp"])] = None
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    swap_space: float | None = None
    enforce_eager: bool | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    disable_log_requests: bool | None = None
    disable_log_stats: bool | None = None
    enable_metrics: bool | None = None
    host: str | None = None
    url: str | None = None
    port: int | None = None
    response_role: str | None = None

    @property
    def given(self) -> list[str]:
        """Names of those that were given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return [f"--{name.replace('_', '-')}" for name, value in values.items() if value is not None]


def run_batch(
    *,
    input_file: Annotated[Path, Parameter(name=["--input-file", "-i"], help="OpenAI batch file (JSONL).")],
    output_file: Annotated[Path, Parameter(name=["--output-file", "-o"], help="File of responses to write.")],
    model: ModelOptions | None = None,
    truncate_prompt_tokens: Annotated[
        int | None, Parameter(help="Keep a prompt's last tokens; -1: as many as fit.")
    ] = None,
    sampling: SamplingOptions | None = None,
    vllm: VllmOptions | None = None,
    options: RunOptions | None = None,
) -> int:
    """Run an OpenAI batch file, with vLLM's command line.

    Each row has `custom_id`, `method`, `url` and `body`; what a body says overrides the options given here.
    """
    model, options = model or ModelOptions(), options or RunOptions()
    checks.check_model(model.model, runtime=model.runtime)
    rows = checks.first_rows([input_file])
    good = [row for row in rows if isinstance(row, dict)]
    if good and all("body" not in row for row in good):
        raise ConfigError(f"{input_file} is no batch file: its rows have no body (they have {', '.join(good[0])})")
    idle = vllm.given if vllm else []
    if idle and not options.quiet:
        print(f"pilotlight: {', '.join(idle)}: taken for vLLM's sake, without effect", file=sys.stderr)
    operation = Operation(
        kind="echo" if model.runtime == "echo" else "generate",
        sampling=(sampling or SamplingOptions()).params().to_wire(),
        truncate_prompt_tokens=truncate_prompt_tokens,
        result_format="openai",
    )
    return run_files(model.llm(), operation, [input_file], output_file, options)
