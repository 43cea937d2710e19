"""`LLM`: a model as a context, with vLLM's offline calls on it.

It starts nothing and imports no runtime; only the first call makes a pool. How rows become payloads: `rows.py`.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from pilotlight import wire
from pilotlight.client.results import Classification, Generation
from pilotlight.client.sampling import SamplingParams
from pilotlight.core.errors import ConfigError

if TYPE_CHECKING:
    from pilotlight.client.pool import Pool

DTYPES = ("auto", "float32", "float16", "bfloat16", "half", "float")
RUNTIMES = ("auto", "transformers", "echo")


class LLM:
    """A model folder or hub id with the options that change its answers.

    Calls on it run on a pool of its own, made by the first call and kept until `close` (or the end of a `with`, or
    of the process), so that later calls find the model loaded. To share workers between several, use a `Pool`.

    model: a folder, or a Hugging Face id, at `revision` (a branch, tag or commit). dtype: of the weights; `auto` is
    the checkpoint's own. max_model_len: longest prompt and answer together. runtime: `auto` picks transformers.
    workers: for the pool of its own; default: one per GPU, else half of the CPUs, 1 to 4.
    Raises `ConfigError`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: str = "auto",
        max_model_len: int | None = None,
        trust_remote_code: bool = False,
        runtime: Literal["auto", "transformers", "echo"] = "auto",
        workers: int | None = None,
    ) -> None:
        self.model = os.fspath(model)
        self._workers = workers
        self._pool: Pool | None = None
        self._lock = threading.Lock()
        self.wire = describe_model(
            self.model,
            revision=revision,
            dtype=dtype,
            max_model_len=max_model_len,
            trust_remote_code=trust_remote_code,
            runtime=runtime,
        )

    def generate(self, prompts: str | Iterable[Any], sampling_params: SamplingParams | None = None) -> list[Generation]:
        """Continue each prompt: a text, a list of token ids, or a dict with `prompt` or `prompt_token_ids`.

        One output per prompt, in order. No chat template is applied; see `chat`.
        """
        return list(self._started().generate(self, _several(prompts), sampling_params))

    def chat(self, messages: Any, sampling_params: SamplingParams | None = None) -> list[Generation]:
        """Answer a conversation (a list of `{"role", "content"}`) or each of several, through the chat template."""
        conversations = [messages] if _is_conversation(messages) else messages
        return list(self._started().chat(self, conversations, sampling_params))

    def classify(
        self,
        prompts: str | Iterable[Any],
        *,
        labels: Sequence[str],
        label_scoring: Literal["sum", "mean"] = "sum",
    ) -> list[Classification]:
        """Compare the labels as continuations of each prompt; nothing is decoded."""
        return list(self._started().classify(self, _several(prompts), labels=labels, label_scoring=label_scoring))

    def close(self) -> None:
        """End the pool of its own, if there is one. The next call makes a new one."""
        with self._lock:
            self._drop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LLM({self.model!r})"

    def _started(self) -> Pool:
        """The pool of its own; a new one where there is none, or where its manager died."""
        from pilotlight.client.pool import Pool

        with self._lock:
            if self._pool is not None and self._pool.lost:
                self._drop()
            if self._pool is None:
                pool = Pool(self._workers)
                pool.start()
                atexit.register(pool.close)
                self._pool = pool
            return self._pool

    def _drop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            atexit.unregister(pool.close)
            pool.close()


def describe_model(
    model: str | None,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    max_model_len: int | None = None,
    trust_remote_code: bool = False,
    runtime: str = "auto",
) -> wire.Context:
    """The context as a request names it: what the manager resolves is still raw. Raises `ConfigError`."""
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime must be one of {', '.join(RUNTIMES)}, not {runtime!r}")
    if runtime == "echo":
        return wire.Context(runtime="echo", name="echo", identity="echo")
    if not model:
        raise ConfigError("a model is needed: a folder or a Hugging Face id")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if max_model_len is not None and max_model_len < 1:
        raise ConfigError(f"max_model_len must be 1 or more, not {max_model_len}")
    options: dict[str, Any] = {"dtype": {"half": "float16", "float": "float32"}.get(dtype, dtype)}
    if revision is not None:
        options["revision"] = revision
    if max_model_len is not None:
        options["max_model_len"] = max_model_len
    if trust_remote_code:
        options["trust_remote_code"] = True
    # A folder is made absolute here, because the manager may have another current folder.
    path = os.path.abspath(os.path.expanduser(model)) if os.path.isdir(os.path.expanduser(model)) else model
    return wire.Context(runtime=runtime, name=model, identity="", model_path=path, options=options)


def _several(prompts: str | Iterable[Any]) -> Iterable[Any]:
    """VLLM takes a single prompt, too."""
    if isinstance(prompts, str | dict):
        return [prompts]
    if isinstance(prompts, list):
        listed = prompts
        return [listed] if listed and isinstance(listed[0], int) else listed
    return prompts


def _is_conversation(messages: Any) -> bool:
    if isinstance(messages, str):
        return True
    listed = cast("list[object]", messages) if isinstance(messages, list) else []
    return bool(listed) and isinstance(listed[0], dict) and "role" in listed[0]
