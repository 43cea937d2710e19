"""The OpenAI batch file's requests and answers: a line's body to a prompt with sampling, a result to a response body.

What a body may say is a closed list: a field that we would have to ignore is refused by name, so that no one gets
answers to another question than they asked. The names beyond OpenAI's own are vLLM's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from pilotlight.wire import Sampling

CHAT_URL = "/v1/chat/completions"
COMPLETIONS_URL = "/v1/completions"

_SAMPLING_FIELDS = frozenset(Sampling.__struct_fields__)
_IGNORED_FIELDS = frozenset({"model", "messages", "prompt", "user", "metadata", "store", "service_tier"})
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "use_beam_search": (False,),
}
"""Values that ask for nothing; any other value of these fields is unsupported. null is neutral everywhere."""


class Unsupported(Exception):
    """The body asks for something that this runtime does not do; the text is one sentence."""


class BadBody(Exception):
    """The line is not a request."""


@dataclass(frozen=True, slots=True)
class Request:
    """fields: `messages` or `prompt`, as a plain row has them. truncate_prompt_tokens: as in `Operation`; None where
    the body does not say. model: what the body calls the model, which the answer calls it too."""

    fields: dict[str, Any]
    sampling: Sampling
    chat_template_kwargs: dict[str, Any]
    truncate_prompt_tokens: int | None
    model: str | None


def parse(line: dict[str, Any], defaults: Sampling) -> Request:
    """Read a batch line (`custom_id`, `method`, `url`, `body`); its sampling fields override `defaults`."""
    if not isinstance(line.get("body"), dict):
        raise BadBody("The line has no `body` object.")
    body: dict[str, Any] = line["body"]
    url = line.get("url", CHAT_URL if "messages" in body else COMPLETIONS_URL)
    if url not in (CHAT_URL, COMPLETIONS_URL):
        raise Unsupported(f"The url {url} is not served; {CHAT_URL} and {COMPLETIONS_URL} are.")
    name = "messages" if url == CHAT_URL else "prompt"
    if name not in body:
        raise BadBody(f"The body has no `{name}`, which {url} needs.")
    kwargs: dict[str, Any] = {}
    truncate: int | None = None
    changes: dict[str, Any] = {}
    for field, value in body.items():
        if value is None or field in _IGNORED_FIELDS:
            continue
        if field in _SAMPLING_FIELDS:
            changes[field] = [value] if field == "stop" and isinstance(value, str) else value
        elif field == "max_completion_tokens":
            changes["max_tokens"] = value
        elif field == "chat_template_kwargs" and isinstance(value, dict):
            kwargs = cast("dict[str, Any]", value)
        elif field == "truncate_prompt_tokens":
            if type(value) is not int or (value < 1 and value != -1):
                raise BadBody(f"The body's `truncate_prompt_tokens` must be 1 or more, or -1, not {value!r}.")
            truncate = value
        elif value not in _NEUTRAL.get(field, ()):
            raise Unsupported(f"The body asks for `{field}`, which this runtime does not support.")
    if "max_completion_tokens" in body and body["max_completion_tokens"] is not None:
        changes["max_tokens"] = body["max_completion_tokens"]
    current = {field: getattr(defaults, field) for field in _SAMPLING_FIELDS}
    try:
        sampling = msgspec.convert({**current, **changes}, Sampling)
    except msgspec.ValidationError as error:
        raise BadBody(f"The body's sampling fields can't be read: {error}") from error
    model = body.get("model")
    return Request({name: body[name]}, sampling, kwargs, truncate, model if isinstance(model, str) else None)


def response(result: dict[str, Any], *, chat: bool, model: str, request_id: str) -> dict[str, Any]:
    """The response body for a generate result (`text`, `finish_reason`, `usage`)."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": result["finish_reason"]}
    if chat:
        choice["message"] = {"role": "assistant", "content": result["text"]}
    else:
        choice["text"] = result["text"]
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": result["usage"],
    }
