"""What makes two jobs the same, and the names by which a refusal tells the difference."""

from __future__ import annotations

from typing import Any

from pilotlight.manager.jobs import identity
from pilotlight.wire import Context, JobRequest, Operation, Sampling, StreamInput, StreamOutput


def named(kind: str = "generate", options: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    context = Context(runtime="transformers", name="m", identity="m@1", options=options or {})
    operation = Operation(kind=kind, **changes)  # type: ignore[arg-type]
    return identity(JobRequest(context=context, operation=operation, input=StreamInput(), output=StreamOutput()))


def difference(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in {*one, *other} if one.get(name) != other.get(name)}


def test_every_parameter_has_its_name() -> None:
    plain = named()
    assert difference(plain, named(sampling=Sampling(max_tokens=9))) == {"sampling max_tokens"}
    assert difference(plain, named(chat=True)) == {"chat"}
    assert difference(plain, named(truncate_prompt_tokens=5)) == {"truncate_prompt_tokens"}
    assert difference(plain, named(options={"dtype": "float16"})) == {"dtype"}
    assert difference(plain, named(prompt_template="{claim}")) == {"prompt_template"}


def test_sampling_changes_no_label() -> None:
    labels = ["a", "b"]
    one = named("classify", labels=labels)
    assert one == named("classify", labels=labels, sampling=Sampling(temperature=0.3))
    assert difference(one, named("classify", labels=["a", "c"])) == {"labels"}


def test_functions_are_told_apart() -> None:
    assert difference(named("map", function=b"f"), named("map", function=b"g")) == {"function"}
