"""From a row's payload to token ids: the one place where templates, BOS and limits are decided.

- `messages` go through the chat template exactly once; the ids are those of `tokenizer.apply_chat_template`.
- `prompt` text gets the tokenizer's own special tokens, but no second BOS where the text brings one; a list of ids
  (there, or in `prompt_token_ids`, which counts before a text) is taken as it is. Only `operation.chat` sends a
  prompt through the chat template, as one user message.
- What can't be rendered is a `RowError`, never an exception that hurts the row's neighbours.

Needs a tokenizer and no weights, so `--dry-run` uses it too. Call it after the fork only: fast tokenizers use threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pilotlight.runtimes.transformers import openai
from pilotlight.wire import Operation, Sampling

PLAIN_MAX_TOKENS = 16
"""vLLM's default for a prompt without chat template; a chat may go on for as long as fits."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row that can run. text: what was tokenised (None for given ids). chat: went through the chat template.

    max_tokens: how many tokens may be generated; at least 1 for `generate`, 0 for `classify`. model: what the row
    calls the model, if it does.
    """

    ids: list[int]
    text: str | None
    chat: bool
    truncated: bool
    max_tokens: int
    sampling: Sampling
    model: str | None = None


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row can't run; becomes its error outcome."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class _Rendered:
    text: str | None
    ids: list[int] | None
    chat: bool
    special: bool
    sampling: Sampling
    max_tokens: int | None
    truncate: int | None
    model: str | None


class _Refused(Exception):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Prompter:
    """Renders rows for one tokenizer and one limit of tokens per request (prompt and answer together)."""

    def __init__(self, tokenizer: Any, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._bos: str | None = tokenizer.bos_token

    def render(self, operation: Operation, payloads: Sequence[Any], *, reserve: int = 0) -> list[Prompt | RowError]:
        """One answer per payload, in order. `reserve`: tokens kept free after the prompt (a label's, for classify)."""
        rendered: list[_Rendered | RowError] = []
        for payload in payloads:
            try:
                rendered.append(self._render(operation, payload))
            except _Refused as refused:
                rendered.append(RowError(refused.kind, str(refused)))
        texts = {special: self._tokenise(rendered, special=special) for special in (False, True)}
        prompts: list[Prompt | RowError] = []
        for item in rendered:
            if isinstance(item, RowError):
                prompts.append(item)
            else:
                ids = item.ids if item.text is None else next(texts[item.special])
                if ids is None:
                    prompts.append(RowError("bad_row", "The tokenizer can't read the prompt's text."))
                else:
                    prompts.append(self._fit(operation, item, ids, reserve))
        return prompts

    def _tokenise(self, rendered: list[_Rendered | RowError], *, special: bool) -> Iterator[list[int] | None]:
        """Ids of the texts with, or without, special tokens; None for a text that no tokenizer reads (surrogates)."""
        texts = [
            item.text
            for item in rendered
            if isinstance(item, _Rendered) and item.text is not None and item.special is special
        ]
        if not texts:
            return iter(())
        try:
            return iter(self._encode(texts, special=special))
        except (TypeError, ValueError):
            return (self._encode_alone(text, special=special) for text in texts)

    def _encode(self, texts: list[str], *, special: bool) -> list[list[int]]:
        return self._tokenizer(
            texts, add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )["input_ids"]

    def _encode_alone(self, text: str, *, special: bool) -> list[int] | None:
        try:
            return self._encode([text], special=special)[0]
        except (TypeError, ValueError):
            return None

    def _render(self, operation: Operation, payload: Any) -> _Rendered:
        sampling = operation.sampling
        if not isinstance(payload, dict | str):
            raise _Refused("bad_row", f"The row is a {type(payload).__name__}, not an object with fields.")
        fields = {"prompt": payload} if isinstance(payload, str) else cast("dict[str, Any]", payload)
        kwargs, truncate, model = operation.chat_template_kwargs, operation.truncate_prompt_tokens, None
        if operation.result_format == "openai":
            try:
                request = openai.parse(fields, sampling)
            except openai.Unsupported as unsupported:
                raise _Refused("unsupported", str(unsupported)) from unsupported
            except openai.BadBody as bad:
                raise _Refused("bad_row", str(bad)) from bad
            sampling, kwargs = request.sampling, {**kwargs, **request.chat_template_kwargs}
            fields, model = request.fields, request.model
            truncate = truncate if request.truncate_prompt_tokens is None else request.truncate_prompt_tokens
        messages, prompt = self._conversation(operation, fields)
        if messages is not None:
            text = self._apply_chat_template(messages, kwargs)
            return _Rendered(text, None, True, False, sampling, sampling.max_tokens, truncate, model)
        max_tokens = PLAIN_MAX_TOKENS if sampling.max_tokens is None else sampling.max_tokens
        if isinstance(prompt, str):
            special = not (self._bos and prompt.startswith(self._bos))
            return _Rendered(prompt, None, False, special, sampling, max_tokens, truncate, model)
        return _Rendered(None, prompt, False, False, sampling, max_tokens, truncate, model)

    def _conversation(
        self, operation: Operation, fields: dict[str, Any]
    ) -> tuple[list[Any] | None, str | list[int] | None]:
        """The row's messages, or its prompt."""
        prompt: str | list[int]
        if operation.prompt_template is not None and operation.result_format != "openai":
            prompt = _formatted(operation.prompt_template, fields)
        elif "messages" in fields:
            return _messages(operation, fields["messages"]), None
        elif fields.get("prompt_token_ids") is not None:
            prompt = self._checked_ids(fields["prompt_token_ids"], "`prompt_token_ids` is not a list of token ids.")
        elif "prompt" in fields:
            prompt = self._checked_prompt(fields["prompt"])
        else:
            raise _Refused("bad_row", f"The row has neither `prompt` nor `messages`; it has {_names(fields)}.")
        if not operation.chat:
            return None, prompt
        if not isinstance(prompt, str):
            raise _Refused("bad_row", "A prompt of token ids can't go through the chat template.")
        system = [] if operation.system_prompt is None else [{"role": "system", "content": operation.system_prompt}]
        return [*system, {"role": "user", "content": prompt}], None

    def _checked_prompt(self, prompt: Any) -> str | list[int]:
        if isinstance(prompt, str):
            return prompt
        return self._checked_ids(prompt, "`prompt` is neither a text nor a list of token ids.")

    def _checked_ids(self, given: Any, otherwise: str) -> list[int]:
        if not isinstance(given, list) or not given or any(type(item) is not int for item in cast("list[Any]", given)):
            raise _Refused("bad_row", otherwise)
        ids = cast("list[int]", given)
        vocabulary = len(self._tokenizer)
        bad = next((item for item in ids if not 0 <= item < vocabulary), None)
        if bad is not None:
            raise _Refused("bad_row", f"Token id {bad} is outside the vocabulary of {vocabulary} tokens.")
        return ids

    def _apply_chat_template(self, messages: list[Any], kwargs: dict[str, Any]) -> str:
        if not self._tokenizer.chat_template:
            raise _Refused("bad_row", "The model has no chat template, so it takes `prompt` and not `messages`.")
        kwargs = {"add_generation_prompt": True, **kwargs}
        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
        except Exception as error:
            raise _Refused("bad_row", f"The chat template refused the messages: {error}") from error

    def _fit(self, operation: Operation, item: _Rendered, ids: list[int], reserve: int) -> Prompt | RowError:
        if not ids:
            return RowError("bad_row", "The prompt is empty: it has no tokens.")
        generates = operation.kind == "generate"
        limit = self._max_model_len - (1 if generates else reserve)
        given = len(ids)
        wish = item.truncate
        if wish is not None:
            fits = max(1, self._max_model_len - (item.max_tokens or 1)) if generates else limit
            ids = ids[-max(1, min(fits, limit) if wish < 0 else min(wish, limit)) :]
        if len(ids) > limit:
            text = (
                f"The prompt has {given} tokens; at most {limit} fit (the model takes {self._max_model_len} with the "
                "answer). --truncate-prompt-tokens -1 would keep the last ones that fit."
            )
            return RowError("prompt_too_long", text)
        room = self._max_model_len - len(ids)
        max_tokens = (room if item.max_tokens is None else min(item.max_tokens, room)) if generates else 0
        return Prompt(ids, item.text, item.chat, len(ids) < given, max_tokens, item.sampling, item.model)


def _messages(operation: Operation, given: Any) -> list[Any]:
    if not isinstance(given, list) or not given:
        raise _Refused("bad_row", "`messages` is not a list of messages.")
    messages = cast("list[Any]", given)
    first: Any = messages[0]
    if operation.system_prompt is None or (
        isinstance(first, dict) and cast("dict[str, Any]", first).get("role") == "system"
    ):
        return messages
    return [{"role": "system", "content": operation.system_prompt}, *messages]


def _formatted(template: str, fields: dict[str, Any]) -> str:
    try:
        return template.format_map(fields)
    except KeyError as error:
        name = str(error.args[0])
        raise _Refused(
            "bad_row", f"The prompt template needs the field `{name}`; the row has {_names(fields)}."
        ) from None
    except Exception as error:
        text = f"The prompt template can't be filled from this row: {type(error).__name__}: {error}."
        raise _Refused("bad_row", text) from error


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in fields) or "no fields"
