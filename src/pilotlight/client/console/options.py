"""Groups of options that verbs share, as dataclasses; vLLM's names where vLLM has the same thing."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from pilotlight.client import checks
from pilotlight.client.llm import LLM
from pilotlight.client.sampling import SamplingParams
from pilotlight.core.errors import ConfigError
from pilotlight.quantities import duration_s, worker_shape
from pilotlight.wire import WorkerShape

WORKER = Parameter(
    help="One worker, slower or smaller than it could be: speed=0.25,memory=2GB. Repeatable.",
    negative="",
    show_default=False,
)
_MODEL = Group("Model", sort_key=1)
_SAMPLING = Group("Sampling (unset: the model's generation_config.json, then vLLM's defaults)", sort_key=3)
_RUN = Group("Running", sort_key=4)
_POOL = Group("Pool (the default one, if it is up; else workers of this command's own)", sort_key=5)


@Parameter(name="*", group=_MODEL)
@dataclass(kw_only=True)
class LoadOptions:
    """How a model is loaded."""

    revision: Annotated[str | None, Parameter(help="Branch, tag or commit of a Hugging Face id.")] = None
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16", "half", "float"],
        Parameter(help="Type of the weights; auto: the checkpoint's own."),
    ] = "auto"
    max_model_len: Annotated[int | None, Parameter(help="Longest prompt and answer together, in tokens.")] = None
    trust_remote_code: Annotated[bool, Parameter(help="Run Python code that comes with the model.", negative="")] = (
        False
    )
    runtime: Annotated[
        Literal["auto", "transformers", "echo"],
        Parameter(help="What runs the model; echo gives rows back, for benchmarks."),
    ] = "auto"

    def context(self, model: str) -> LLM:
        """This model, loaded so. Raises `ConfigError`."""
        return LLM(
            model,
            revision=self.revision,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            trust_remote_code=self.trust_remote_code,
            runtime=self.runtime,
        )


@dataclass(kw_only=True)
class _Named:
    model: Annotated[str | None, Parameter(help="Model folder, or Hugging Face id.")] = None


@Parameter(name="*", group=_MODEL)
@dataclass(kw_only=True)
class ModelOptions(LoadOptions, _Named):  # the last one's options come first
    """Which model, and how it is loaded."""

    def llm(self) -> LLM:
        """The context that these options describe. Raises `ConfigError`."""
        return self.context(self.model or "")


@Parameter(name="*", group=_SAMPLING)
@dataclass(kw_only=True)
class SamplingOptions:
    """How `generate` picks tokens."""

    max_tokens: Annotated[
        int | None, Parameter(help="Longest answer; unset: what fits for chats, 16 for plain prompts.")
    ] = None
    temperature: Annotated[float | None, Parameter(help="0 is greedy.")] = None
    top_p: Annotated[float | None, Parameter(help="Share of probability considered.")] = None
    top_k: Annotated[int | None, Parameter(help="Number of tokens considered; 0 or -1: all.")] = None
    min_p: Annotated[float | None, Parameter(help="Least probability, relative to the likeliest token's.")] = None
    repetition_penalty: Annotated[float | None, Parameter(help="Above 1 discourages tokens seen.")] = None
    presence_penalty: Annotated[float | None, Parameter(help="Above 0 discourages tokens written.")] = None
    frequency_penalty: Annotated[float | None, Parameter(help="The same, per occurrence.")] = None
    seed: Annotated[
        int | None,
        Parameter(help="Unset: follows from the request; equal calls draw equal tokens. Set one for other draws."),
    ] = None
    stop: Annotated[
        tuple[str, ...], Parameter(help="A text that ends an answer. Repeatable.", negative="", show_default=False)
    ] = ()
    ignore_eos: Annotated[bool, Parameter(help="Go on after the end-of-text token.", negative="")] = False

    @property
    def given(self) -> list[str]:
        """Names of the options that were set."""
        return [f"--{option.name.replace('_', '-')}" for option in fields(self) if _is_set(self, option)]

    def params(self) -> SamplingParams:
        """As the Python API has it. Raises `ConfigError`."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=self.stop or None,
            ignore_eos=self.ignore_eos or None,
        )


@Parameter(name="*", group=_RUN)
@dataclass(kw_only=True)
class RunOptions:
    """How a job between files is run."""

    limit: Annotated[int | None, Parameter(help="Only the first rows.")] = None
    dry_run: Annotated[
        bool, Parameter(help="Show the first prompts and what would run, and run nothing.", negative="")
    ] = False
    overwrite: Annotated[bool, Parameter(help="Start afresh, whatever is there.", negative="")] = False
    retry_errors: Annotated[
        tuple[str, ...] | None,
        Parameter(help="Do error rows again; =KIND: only those. Repeatable.", negative=""),
    ] = None
    max_attempts: Annotated[int, Parameter(help="Tries of a row that breaks its replica.")] = 3
    request_timeout: Annotated[
        str, Parameter(help="Time without a finished step after which a replica hangs and is ended: 90s, 10m, 1h.")
    ] = "10m"
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], help="Show why.", negative="")] = False
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], help="Say only what went wrong.", negative="")] = False
    pool: Annotated[
        str | None, Parameter(group=_POOL, help="Use this pool, which is up: name, folder or client.json.")
    ] = None
    no_pool: Annotated[bool, Parameter(group=_POOL, help="Use no pool that stays.", negative="")] = False
    detach: Annotated[
        bool, Parameter(group=_POOL, help="Hand the job to the pool, print its id, and leave.", negative="")
    ] = False
    weight: Annotated[
        float | None, Parameter(group=_POOL, help="Fair share beside the pool's other jobs; unset: 1; 2 is twice that.")
    ] = None
    workers: Annotated[
        int | None,
        Parameter(
            group=_POOL, help="Workers of this command's own; unset: one per GPU, else half of the CPUs, 1 to 4."
        ),
    ] = None
    worker: Annotated[tuple[str, ...], WORKER, Parameter(group=_POOL)] = ()

    def check(self) -> None:
        """Raises `ConfigError` for values that make no sense, alone or together."""
        checks.check_numbers(limit=self.limit, workers=self.workers, max_attempts=self.max_attempts)
        checks.check_share(self.share, self.request_timeout_s, ("--weight", "--request-timeout"))
        if self.no_pool and self.pool is not None:
            raise ConfigError("--no-pool and --pool exclude each other")
        if self.no_pool and self.detach:
            raise ConfigError("--detach needs a pool that stays, and --no-pool uses none")
        if self.overwrite and self.retry_errors is not None:
            raise ConfigError("--overwrite starts afresh and --retry-errors keeps what is there: give one of them")

    def of_job(self, *, again: bool) -> dict[str, Any]:
        """Those that `Pool.run_files` takes. `again`: the job had begun, so nothing is to be undone once more."""
        return {
            "limit": self.limit,
            "overwrite": self.overwrite and not again,
            "retry_errors": None if again else self.retried,
            "max_attempts": self.max_attempts,
            "weight": self.share,
            "request_timeout_s": self.request_timeout_s,
            "detach": self.detach,
        }

    @property
    def share(self) -> float:
        """What `--weight` says."""
        return 1.0 if self.weight is None else self.weight

    @property
    def request_timeout_s(self) -> float:
        """Raises `ConfigError`."""
        return duration_s(self.request_timeout, "--request-timeout")

    @property
    def shapes(self) -> list[WorkerShape]:
        """What `--worker` describes. Raises `ConfigError`."""
        return [worker_shape(text) for text in self.worker]

    @property
    def retried(self) -> list[str] | None:
        """As `PathOutput.retry_errors`: a bare option (an empty text) means every kind."""
        if self.retry_errors is None:
            return None
        return [] if "" in self.retry_errors else list(self.retry_errors)


def _is_set(options: Any, option: Field[Any]) -> bool:
    return getattr(options, option.name) != option.default


Inputs = Annotated[list[Path], Parameter(help="JSONL files, plain, .gz or .zst, read in this order.", negative="")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"], help="JSONL file to write.")]
Truncation = Annotated[int | None, Parameter(help="Keep a prompt's last tokens; -1: as many as fit.")]
