"""What travels: the job's description and bundles of rows; `messages.py` has what is said about them.

Rows and results are opaque bytes here: a `Chunk` holds input lines, a `ResultChunk`
holds output lines, and only the replica looks inside either. Encoding is MessagePack through msgspec.

What does not live here: sockets (`engines/`), the meaning of a row (`io/rows.py`), decisions (`core/`).
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec

VERSION = 4

ResultFormat = Literal["pilotlight", "openai"]

Span = tuple[int, int]
"""Half-open range of request indices: start <= index < stop."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all that travels: unknown fields are an error, so that two versions never half-understand each other."""


# --- what a job is -----------------------------------------------------------------------------------------


class Context(Struct, frozen=True, kw_only=True):
    """What many requests share and is slow to build. Immutable; `id` is a digest of what changes its answers.

    runtime: `transformers`, `python` or `echo`.
    name: what people read: a model's hub id or folder, a function's name.
    model_path: absolute folder with config, tokenizer and weights; None for python and echo contexts.
    identity: everything that changes answers and is not in `options`: the model's commit or content digest, or a
        Python context's name and version or source digest.
    options: runtime options that change answers (`dtype`, `max_model_len`, `trust_remote_code`).
    load: cloudpickle of `(function, args, kwargs)` that builds a Python context's state; None otherwise.
    memory_bytes: a hint of what a live replica needs; no part of the id.
    """

    runtime: str
    name: str
    identity: str
    model_path: str | None = None
    options: dict[str, Any] = {}
    load: bytes | None = None
    memory_bytes: int = 0

    @property
    def id(self) -> str:
        """Twelve hex digits of a SHA-256 over runtime, identity and options."""
        return digest([self.runtime, self.identity, sorted(self.options.items())])


class Sampling(Struct, frozen=True, kw_only=True):
    """How `generate` picks tokens; the names and meanings are vLLM's `SamplingParams`.

    None means "not set": the manager fills it from the model's generation_config.json and then from vLLM's
    defaults, once, before a job starts, so a replica only ever sees set values. But for `max_tokens`: None there means,
    as in vLLM's server, as many as fit for a conversation, and 16 for a plain prompt.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None


class Operation(Struct, frozen=True, kw_only=True):
    """What to do with each row of a job; equal operations give equal answers on equal rows.

    kind: `generate`, `classify`, `map` (a user's function) or `echo`.
    prompt_template: a `str.format` template over the row's fields (`Claim: {claim}`); None: the row has `prompt`
        or `messages`.
    chat: pass `prompt` (or the rendered template) through the chat template as one user message.
    labels, label_scoring: for `classify`: the continuations compared; log-likelihoods are summed or averaged over
        a label's tokens.
    truncate_prompt_tokens: keep the last n prompt tokens (vLLM's meaning); -1: as many as the model can take;
        None: a prompt that is too long is an error row.
    function: cloudpickle of a user's function, for `map`.
    batched, batch_max: whether that function takes a list of rows, and how many at most.
    row_format: `json`, or `pickle`: rows and results are base64 of cloudpickle (Python API only).
    result_format: `pilotlight` or `openai` (the OpenAI batch file's answer form).
    chat_template_kwargs: passed to the chat template.
    """

    kind: Literal["generate", "classify", "map", "echo"]
    prompt_template: str | None = None
    chat: bool = False
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, Any] = {}
    sampling: Sampling = Sampling()
    labels: list[str] = []
    label_scoring: Literal["sum", "mean"] = "sum"
    truncate_prompt_tokens: int | None = None
    function: bytes | None = None
    function_name: str = ""
    batched: bool = False
    batch_max: Annotated[int, msgspec.Meta(ge=1)] = 1
    row_format: Literal["json", "pickle"] = "json"
    result_format: ResultFormat = "pilotlight"

    @property
    def id(self) -> str:
        """Digest of the whole operation, to tell whether a resumed job asks for the same thing."""
        return digest(msgspec.to_builtins(self))


class PathInput(Struct, frozen=True, kw_only=True, tag=True):
    """One or several files, read in the given order as one input. Paths are absolute."""

    paths: list[str]
    limit: int | None = None


class StreamInput(Struct, frozen=True, kw_only=True, tag=True):
    """Rows that the client sends over the link as the manager gives it room; they end with the client."""


class PathOutput(Struct, frozen=True, kw_only=True, tag=True):
    """A file beside which the job keeps its working folder. `retry_errors`: None: keep error rows; a list of kinds
    to do again; empty list: every kind. `umask`: the client's, which the files' modes follow; None: the manager's."""

    path: str
    overwrite: bool = False
    retry_errors: list[str] | None = None
    umask: int | None = None


class StreamOutput(Struct, frozen=True, kw_only=True, tag=True):
    """Results go back over the client's link as they finish; the client puts them in order where that is wanted."""


class JobRequest(Struct, frozen=True, kw_only=True):
    """One job as a client hands it in. `arguments` is what the user typed, for the report only.

    weight: its fair share beside other jobs. request_timeout_s: a replica that holds rows of this job and finishes no
    step for so long hangs, and is ended.
    """

    context: Context
    operation: Operation
    input: PathInput | StreamInput
    output: PathOutput | StreamOutput
    name: str = ""
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    max_attempts: Annotated[int, msgspec.Meta(ge=1)] = 3
    request_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    arguments: dict[str, Any] = {}


# --- rows ----------------------------------------------------------------------------------------------------


class Chunk(Struct, frozen=True, array_like=True):
    """Consecutive rows as bytes: `count` lines joined by one newline, without a last one.

    start: index of the first row. line: its line number in `origin` (1-based); rows of one chunk stand on
    consecutive lines. origin: the file's name as errors should call it.
    """

    start: int
    count: int
    line: int
    origin: str
    blob: bytes

    @property
    def stop(self) -> int:
        """Index after the last row."""
        return self.start + self.count


class ResultChunk(Struct, frozen=True, array_like=True):
    """Finished rows as bytes: one output line per row, in the order of `spans`, joined by one newline, no last one.

    errors: kind -> indices of the rows that are error rows. counters: sums over these rows (`prompt_tokens`,
    `completion_tokens`, `truncated`, `length`, and `busy_s`, the seconds that the replica worked on them).
    tallies: each row's part of them, in the same order, so that a part of a chunk has exact sums too; not kept.
    """

    spans: list[Span]
    blob: bytes
    errors: dict[str, list[int]] = {}
    counters: dict[str, float] = {}
    tallies: dict[str, list[float]] = {}

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(stop - start for start, stop in self.spans)


# --- files ---------------------------------------------------------------------------------------------------


class FileFact(Struct, frozen=True, array_like=True):
    """A file's content: its SHA-256 in hexadecimal, and its size in bytes."""

    digest: str
    size: int


class Listing(Struct, frozen=True, kw_only=True):
    """The files of a variant by their paths below its folder. single: the model is that one file, not a folder."""

    files: dict[str, FileFact]
    single: bool = False


class Served(Struct, frozen=True, kw_only=True):
    """A worker's file service. url: where other machines reach it. key: what its tokens are made with. now_s: the
    monotonic clock of its machine, by which they expire."""

    url: str
    key: bytes
    now_s: float


class Offer(Struct, frozen=True, kw_only=True):
    """What a worker may fetch. url: of the file service; empty: the manager's, at the address where the worker reached
    the manager. tokens: by digest."""

    listing: Listing
    tokens: dict[str, str]
    url: str = ""


class Arrival(Struct, frozen=True, kw_only=True):
    """A variant's files that are being staged: how many of their bytes are here, and from which worker they come
    (empty: from the origin)."""

    variant: str
    done_bytes: int
    total_bytes: int
    source: str = ""


# --- workers and pools ---------------------------------------------------------------------------------------


class DeviceSpec(Struct, frozen=True, kw_only=True):
    """A GPU, a slice of one, or the CPUs of a worker without GPU.

    id: unique within a worker and stable over its life: `cpu`, or a CUDA UUID. kind: what other devices it is
    interchangeable with (`cpu`, `NVIDIA H100 80GB HBM3`). visible: what CUDA_VISIBLE_DEVICES must say in the
    replica ("" for CPUs). memory_bytes: what is free for us. threads: CPU threads for its replica. speed: below 1, it
    really works that much slower than it could (for tests and demonstrations).
    """

    id: str
    kind: str
    type: Literal["cpu", "cuda"]
    memory_bytes: int
    visible: str = ""
    threads: int = 1
    speed: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0


class Environment(Struct, frozen=True, kw_only=True):
    """What a process can run, as `manager/environment.py` judges it. Empty: not known, or not there.

    python, release: versions of Python (`3.12.4`) and of this package. platform: `linux-x86_64`. packages: versions of
    what runtimes need, by name. missing: modules that a runtime needs and that are not there, by runtime. cuda: the
    CUDA that torch was built for; `none`: a build for CPUs. arches: what torch has code for (`sm_90`,
    `compute_120`). driver, driver_cuda: NVIDIA's driver, and the newest CUDA that it knows. capabilities: compute
    capability (`sm_90`) by device.
    """

    python: str = ""
    release: str = ""
    platform: str = ""
    packages: dict[str, str] = {}
    missing: dict[str, list[str]] = {}
    cuda: str = ""
    arches: list[str] = []
    driver: str = ""
    driver_cuda: str = ""
    capabilities: dict[str, str] = {}

    @property
    def text(self) -> str:
        """Versions, in one line."""
        parts = [f"Python {self.python}", f"pilotlight {self.release}", self.platform]
        parts += [f"{name} {version}" for name, version in self.packages.items()]
        if self.driver:
            parts.append(f"NVIDIA's driver {self.driver} (CUDA {self.driver_cuda})")
        return ", ".join(part for part in parts if part)


class WorkerShape(Struct, frozen=True, kw_only=True):
    """How a local worker is made slower or smaller than the machine would have it. memory_bytes: of its devices
    and of its host memory; 0: what is free."""

    speed: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    memory_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0


class PoolSpec(Struct, frozen=True, kw_only=True):
    """What a pool is, as its folder's `pool.json` (mode 0600) says it; written by whoever starts the pool.

    workers: local workers to keep running. shapes: of the first of them, by slot. log_dir: where all processes write
    their logs. name: what users call a lasting pool. lasting: it outlives its owner's connection. socket_dir: where its
    sockets are, if not in its folder (their paths must be short). orphan_timeout_s: how long workers outlive their
    manager. python: the interpreter to start workers with. silence_s: how long a worker may say nothing. grace_s: how
    long a worker that gets a signal may take to leave. keep_alive_s: how long an idle context stays live; negative: for
    ever. cache_dir: where the cache of model files is; empty: each machine's own place for it. cache_bytes: its size
    limit; 0: what the disk allows. listen: the TCP address (`HOST:PORT`; port 0: any, the same each time) that other
    machines may dial; empty: none. advertise: addresses that they are told to dial, where those are others than its
    own.
    """

    workers: int
    log_dir: str
    name: str = ""
    lasting: bool = False
    shapes: list[WorkerShape] = []
    socket_dir: str = ""
    orphan_timeout_s: float = 2.0
    python: str = ""
    silence_s: float = 10.0
    grace_s: float = 20.0
    keep_alive_s: float = 600.0
    cache_dir: str = ""
    cache_bytes: int = 0
    listen: str = ""
    advertise: list[str] = []


def digest(value: object) -> str:
    """Twelve hex digits of SHA-256 over the value's canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:12]


def minor_of(version: str) -> str:
    """`3.11` of `3.11.7`: functions travel as code, which is the same within one minor version of Python."""
    return ".".join(version.split(".")[:2])


def other_version(worker: str, version: int, release: str, own_release: str) -> str:
    """What to say of a worker whose messages are of another version than this manager's: who is to be upgraded.
    release: the worker's; empty: not known."""
    theirs = f"pilotlight {release}" if release else f"message version {version}"
    if version < VERSION:
        remedy = f"upgrade pilotlight to {own_release} where the worker runs"
    else:
        newer = f" to {release}" if release else ""
        remedy = f"upgrade pilotlight{newer} where the manager runs, and start the pool again"
    return f"{worker} has {theirs}, which this pool's manager (pilotlight {own_release}) does not understand: {remedy}"
