"""vLLM's limits, each a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from pilotlight import ConfigError, SamplingParams


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 0}, "top_p must be greater than 0"),
        ({"top_p": 1.1}, "top_p must be between 0 and 1"),
        ({"top_k": -2}, "top_k must be -1 or more"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"min_p": 2}, "min_p"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"repetition_penalty": 0}, "repetition_penalty must be greater than 0"),
        ({"presence_penalty": 3}, "presence_penalty must be between -2 and 2"),
        ({"stop": [""]}, "stop"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"n": 2}, "n must be 1"),
    ],
)
def test_values_that_make_no_sense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SamplingParams(**given)


def test_unset_stays_unset_and_the_rest_travels() -> None:
    sampling = SamplingParams(temperature=0, stop="\n", stop_token_ids=(2,), top_k=-1).to_wire()
    assert (sampling.temperature, sampling.stop, sampling.stop_token_ids, sampling.top_k) == (0, ["\n"], [2], -1)
    assert sampling.max_tokens is None
    assert sampling.seed is None
