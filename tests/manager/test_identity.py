"""What makes two jobs the same, and the names by which a refusal tells the difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pilotlight.core.errors import OutputExists
from pilotlight.io.workfolder import JobFolder
from pilotlight.manager.jobs import identity
from pilotlight.manager.sampling import effective
from pilotlight.wire import Context, JobRequest, Operation, PathOutput, Sampling, StreamInput, StreamOutput


def named(kind: str = "generate", options: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    context = Context(runtime="transformers", name="m", identity="m@1", options=options or {})
    operation = Operation(kind=kind, **changes)  # type: ignore[arg-type]
    return identity(JobRequest(context=context, operation=operation, input=StreamInput(), output=StreamOutput()))


def difference(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in {*one, *other} if one.get(name) != other.get(name)}


def test_every_parameter_has_its_name() -> None:
    plain = named()
    assert difference(plain, named(sampling=Sampling(max_tokens=9))) == {"max_tokens"}
    assert difference(plain, named(chat=True)) == {"chat"}
    assert difference(plain, named(truncate_prompt_tokens=5)) == {"truncate_prompt_tokens"}
    assert difference(plain, named(options={"dtype": "float16"})) == {"dtype"}
    assert difference(plain, named(prompt_template="{claim}")) == {"prompt_template"}


def test_sampling_changes_no_label() -> None:
    labels = ["a", "b"]
    one = named("classify", labels=labels)
    assert one == named("classify", labels=labels, sampling=Sampling(temperature=0.3))
    assert difference(one, named("classify", labels=["a", "c"])) == {"labels"}


def test_zero_and_false_are_values() -> None:
    greedy = named(sampling=Sampling(temperature=0.0, seed=0))
    assert (greedy["temperature"], greedy["seed"], greedy["chat"]) == (0.0, 0, False)


def test_a_seed_that_nobody_set_is_no_difference_of_its_own(tmp_path: Path) -> None:
    def effective_of(**sampling: Any) -> dict[str, Any]:
        operation = effective(str(tmp_path), Operation(kind="generate", sampling=Sampling(**sampling)))
        return named(sampling=operation.sampling)

    assert difference(effective_of(max_tokens=64), effective_of(max_tokens=128)) == {"max_tokens"}
    assert effective_of(max_tokens=64) == effective_of(max_tokens=64)
    assert difference(effective_of(seed=1), effective_of(seed=2)) == {"seed"}


def test_the_refusal_says_the_values_and_the_same_request_goes_on(tmp_path: Path) -> None:
    output = PathOutput(path=str(tmp_path / "o.jsonl"))
    few = named(sampling=Sampling(max_tokens=64), chat_template_kwargs={"a": [1]})
    JobFolder.open(output, few).close()
    again = JobFolder.open(output, few)
    assert again.resumed
    again.close()
    many = named(sampling=Sampling(max_tokens=128), chat_template_kwargs={"a": [1]})
    with pytest.raises(OutputExists, match=r"\(max_tokens: 64 -> 128\)"):
        JobFolder.open(output, many)


def test_functions_are_told_apart() -> None:
    assert difference(named("map", function=b"f"), named("map", function=b"g")) == {"function"}
