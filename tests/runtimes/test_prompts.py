"""Rendering: one BOS, the chat template once, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from pilotlight.client.rows import prompt_line
from pilotlight.runtimes.transformers import TransformersRuntime
from pilotlight.runtimes.transformers.prompts import Prompt, Prompter, RowError
from pilotlight.wire import Operation, Sampling
from tests import tiny

MESSAGES = [{"role": "user", "content": "Is water wet?"}]


def operation(**changes: Any) -> Operation:
    return Operation(**{"kind": "generate", **changes})


def render(tokenizer: Any, payload: Any, *, limit: int = 512, reserve: int = 0, **changes: Any) -> Prompt | RowError:
    return Prompter(tokenizer, limit).render(operation(**changes), [payload], reserve=reserve)[0]


def ids(tokenizer: Any, payload: Any, **changes: Any) -> list[int]:
    prompt = render(tokenizer, payload, **changes)
    assert isinstance(prompt, Prompt), prompt
    return prompt.ids


def refusal(tokenizer: Any, payload: Any, **changes: Any) -> RowError:
    prompt = render(tokenizer, payload, **changes)
    assert isinstance(prompt, RowError), prompt
    return prompt


def chat_ids(tokenizer: Any, messages: list[Any], **kwargs: Any) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **kwargs)


def test_messages_are_the_templates_ids_with_one_bos(tokenizer: Any) -> None:
    found = ids(tokenizer, {"messages": MESSAGES})
    assert found == chat_ids(tokenizer, MESSAGES)
    assert found.count(tokenizer.bos_token_id) == 1


def test_template_arguments_reach_the_template(tokenizer: Any) -> None:
    found = ids(tokenizer, {"messages": MESSAGES}, chat_template_kwargs={"shout": "hello"})
    assert found == chat_ids(tokenizer, MESSAGES, shout="hello") != chat_ids(tokenizer, MESSAGES)


def test_a_prompt_gets_one_bos_and_no_template(tokenizer: Any) -> None:
    plain = ids(tokenizer, {"prompt": "Is water wet?"})
    assert plain == tokenizer("Is water wet?")["input_ids"]
    assert plain.count(tokenizer.bos_token_id) == 1
    assert ids(tokenizer, {"prompt": "<s>Is water wet?"}) == plain
    assert ids(tokenizer, "Is water wet?") == plain


def test_chat_makes_a_prompt_one_user_message(tokenizer: Any) -> None:
    assert ids(tokenizer, {"prompt": "Is water wet?"}, chat=True) == chat_ids(tokenizer, MESSAGES)
    system = {"role": "system", "content": "Be brief."}
    found = ids(tokenizer, {"prompt": "Is water wet?"}, chat=True, system_prompt="Be brief.")
    assert found == chat_ids(tokenizer, [system, *MESSAGES])


def test_a_rows_own_system_message_stays(tokenizer: Any) -> None:
    own = [{"role": "system", "content": "hello"}, *MESSAGES]
    assert ids(tokenizer, {"messages": own}, system_prompt="Be brief.") == chat_ids(tokenizer, own)
    added = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    assert ids(tokenizer, {"messages": MESSAGES}, system_prompt="Be brief.") == chat_ids(tokenizer, added)


def test_a_template_is_filled_from_the_rows_fields(tokenizer: Any) -> None:
    found = ids(tokenizer, {"claim": "x {y}", "id": 3}, prompt_template="Claim {id}: {claim}")
    assert found == tokenizer("Claim 3: x {y}")["input_ids"]


def test_a_missing_field_is_named(tokenizer: Any) -> None:
    error = refusal(tokenizer, {"text": 1, "id": 2}, prompt_template="Claim: {claim}")
    assert error.kind == "bad_row"
    assert "`claim`" in error.text
    assert "`text`, `id`" in error.text


@pytest.mark.parametrize(
    "payload",
    [{"text": "x"}, [1, 2], {"prompt": 3}, {"messages": []}, {"messages": [{"content": 1}]}, {"prompt": [0, 9999]}],
)
def test_what_is_no_prompt_is_a_bad_row(payload: Any) -> None:
    template = tiny.CHAT_TEMPLATE.replace("{{ bos_token }}", "{{ messages[0]['role'].upper() }}")
    tokenizer = tiny.make_tokenizer(chat_template=template)
    assert refusal(tokenizer, payload).kind == "bad_row"


def test_messages_need_a_chat_template() -> None:
    assert "no chat template" in refusal(tiny.make_tokenizer(chat_template=None), {"messages": MESSAGES}).text


def test_a_lone_surrogate_hurts_only_its_row(tokenizer: Any) -> None:
    good, bad = Prompter(tokenizer, 512).render(operation(), [{"prompt": "ok"}, {"prompt": "\ud800"}])
    assert isinstance(good, Prompt)
    assert isinstance(bad, RowError)


def test_ids_are_taken_as_they_are(tokenizer: Any) -> None:
    assert ids(tokenizer, {"prompt": [5, 6, 7]}) == [5, 6, 7]


def test_too_long_says_how_long_and_what_helps(tokenizer: Any) -> None:
    error = refusal(tokenizer, {"prompt": list(range(20))}, limit=20)
    assert error.kind == "prompt_too_long"
    assert "20 tokens; at most 19" in error.text
    assert "--truncate-prompt-tokens" in error.text


def test_truncation_keeps_the_last_tokens(tokenizer: Any) -> None:
    row = {"prompt": list(range(100))}
    assert ids(tokenizer, row, limit=40, truncate_prompt_tokens=5) == list(range(95, 100))
    fitting = render(tokenizer, row, limit=40, truncate_prompt_tokens=-1, sampling=Sampling(max_tokens=10))
    assert isinstance(fitting, Prompt)
    assert (fitting.ids, fitting.truncated, fitting.max_tokens) == (list(range(70, 100)), True, 10)
    labelled = render(tokenizer, row, limit=40, reserve=3, kind="classify", labels=["a"], truncate_prompt_tokens=-1)
    assert isinstance(labelled, Prompt)
    assert labelled.ids == list(range(63, 100))


def test_max_tokens_unset_is_sixteen_for_prompts_and_what_fits_for_chats(tokenizer: Any) -> None:
    plain = render(tokenizer, {"prompt": [5, 6]})
    chat = render(tokenizer, {"messages": MESSAGES})
    assert isinstance(plain, Prompt)
    assert isinstance(chat, Prompt)
    assert plain.max_tokens == 16
    assert chat.max_tokens == 512 - len(chat.ids)


def openai_row(url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "m", **body}}


def test_openai_bodies_are_chats_or_completions(tokenizer: Any) -> None:
    chat = render(
        tokenizer, openai_row(messages=MESSAGES, max_completion_tokens=3, temperature=0), result_format="openai"
    )
    assert isinstance(chat, Prompt)
    assert chat.ids == chat_ids(tokenizer, MESSAGES)
    assert (chat.max_tokens, chat.sampling.temperature) == (3, 0)
    row = openai_row("/v1/completions", prompt="x", stop="end", n=1, stream=False, logprobs=None)
    plain = render(tokenizer, row, result_format="openai", sampling=Sampling(seed=4))
    assert isinstance(plain, Prompt)
    assert (plain.max_tokens, plain.sampling.stop, plain.sampling.seed) == (16, ["end"], 4)


@pytest.mark.parametrize(
    "body",
    [{"n": 2}, {"stream": True}, {"tools": [{}]}, {"logprobs": True}, {"response_format": {"type": "json_object"}}],
)
def test_openai_wishes_that_we_would_ignore_are_refused(tokenizer: Any, body: dict[str, Any]) -> None:
    error = refusal(tokenizer, openai_row(messages=MESSAGES, **body), result_format="openai")
    assert error.kind == "unsupported"
    assert f"`{next(iter(body))}`" in error.text


def test_openai_lines_that_are_no_requests(tokenizer: Any) -> None:
    assert refusal(tokenizer, openai_row("/v1/embeddings", input="x"), result_format="openai").kind == "unsupported"
    assert refusal(tokenizer, {"prompt": "x"}, result_format="openai").kind == "bad_row"
    assert refusal(tokenizer, openai_row(prompt="x"), result_format="openai").kind == "bad_row"
    bad = openai_row(messages=MESSAGES, temperature="hot")
    assert refusal(tokenizer, bad, result_format="openai").kind == "bad_row"


def test_preview_shows_prompt_and_ids(folder: Path, tokenizer: Any) -> None:
    rows = [{"messages": MESSAGES}, {"prompt": [5, 6]}, {}]
    chat, plain, bad = TransformersRuntime().preview(tiny.context_of(folder), operation(), rows)
    assert chat["token_ids"] == chat_ids(tokenizer, MESSAGES)
    assert chat["prompt"].startswith("<s><|user|>\nIs water wet?")
    assert plain["prompt_tokens"] == 2
    assert bad["error_kind"] == "bad_row"


def test_token_ids_go_in_as_they_are(tokenizer: Any) -> None:
    assert ids(tokenizer, {"prompt_token_ids": [1, 5, 9]}) == ids(tokenizer, {"prompt": [1, 5, 9]}) == [1, 5, 9]
    assert ids(tokenizer, {"prompt": "a text", "prompt_token_ids": [1, 5, 9]}) == [1, 5, 9]
    assert ids(tokenizer, json.loads(prompt_line([1, 5, 9]))) == [1, 5, 9]
    for bad in ([1, 10**6], [-1], [True], [1.0], [], "text", {"a": 1}):
        assert refusal(tokenizer, {"prompt_token_ids": bad}).kind == "bad_row"


def test_an_openai_body_overrides_flags(tokenizer: Any) -> None:
    flags: dict[str, Any] = {"result_format": "openai", "truncate_prompt_tokens": 5, "limit": 40}
    row = {"prompt": list(range(100))}
    assert ids(tokenizer, openai_row("/v1/completions", **row), **flags) == list(range(95, 100))
    body = {**row, "truncate_prompt_tokens": 3, "max_tokens": 7, "temperature": 0.5}
    found = render(
        tokenizer, openai_row("/v1/completions", **body), sampling=Sampling(max_tokens=9, temperature=0.0), **flags
    )
    assert isinstance(found, Prompt)
    assert (found.ids, found.max_tokens, found.sampling.temperature) == ([97, 98, 99], 7, 0.5)
    fitting = {**row, "truncate_prompt_tokens": -1, "max_tokens": 7}
    assert ids(tokenizer, openai_row("/v1/completions", **fitting), **flags) == list(range(67, 100))
    unset = {**row, "truncate_prompt_tokens": None}
    assert ids(tokenizer, openai_row("/v1/completions", **unset), **flags) == list(range(95, 100))


@pytest.mark.parametrize("value", [0, -2, True, "3", 2.0])
def test_an_openai_truncation_that_makes_no_sense(tokenizer: Any, value: Any) -> None:
    row = openai_row("/v1/completions", prompt="x", truncate_prompt_tokens=value)
    error = refusal(tokenizer, row, result_format="openai")
    assert error.kind == "bad_row"
    assert "`truncate_prompt_tokens`" in error.text
