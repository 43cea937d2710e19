"""What rows mean: payloads in, result and error lines out, and telling one from the other."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotlight.core.errors import RequestError
from pilotlight.io.rows import (
    ResultFormat,
    custom_id_of,
    decode_row,
    encode_error,
    encode_pickle,
    encode_result,
    error_kind,
)

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "result", "kind", "code", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
_FORMS: list[ResultFormat] = ["pilotlight", "openai"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":"\xff"}', "not valid JSON"),
        (b'{"a":NaN}', "not valid JSON"),
        (b"null", "not a JSON object but null"),
        (b"true", "not a JSON object but true or false"),
        (b'"x"', "not a JSON object but a string"),
        (b"1.5", "not a JSON object but a number"),
    ],
)
def test_a_bad_row_names_file_and_line(line: bytes, says: str) -> None:
    with pytest.raises(RequestError, match=f"^claims.jsonl line 7: {says}") as raised:
        decode_row(line, "claims.jsonl", 7)
    assert raised.value.kind == "bad_row"


def test_result_lines() -> None:
    assert encode_result(3, {"text": "a\nb"}) == b'{"index":3,"result":{"text":"a\\nb"}}'
    assert encode_result(3, 1, custom_id="c") == b'{"index":3,"custom_id":"c","result":1}'
    assert msgspec.json.decode(encode_result(3, {"choices": []}, "c", "openai")) == {
        "id": "batch_req_3",
        "custom_id": "c",
        "response": {"status_code": 200, "request_id": "req_3", "body": {"choices": []}},
        "error": None,
    }


def test_error_lines() -> None:
    assert encode_error(3, "crashed", "x") == b'{"index":3,"error":{"kind":"crashed","message":"x"}}'
    assert msgspec.json.decode(encode_error(3, "bad_row", "no", "c")) == {
        "index": 3,
        "custom_id": "c",
        "error": {"kind": "bad_row", "message": "no"},
    }
    for kind, status in (("bad_row", 400), ("crashed", 500)):
        row = msgspec.json.decode(encode_error(3, kind, "no", "c", "openai"))
        assert row["response"]["status_code"] == status
        assert row["response"]["body"]["error"]["message"] == "no"
        assert row["error"] == {"code": kind, "message": "no"}
    assert error_kind(encode_error(0, "odd", "lone \ud800 surrogate")) == "odd"


def test_results_that_json_cannot_say() -> None:
    assert encode_result(0, {"a": np.float64(1.5), "b": np.arange(2), "c": np.float32(2)}) == (
        b'{"index":0,"result":{"a":1.5,"b":[0,1],"c":2.0}}'
    )
    for bad in (object(), {"x": {1, object()}}, "\ud800"):
        with pytest.raises(RequestError, match="can't be written as JSON") as raised:
            encode_result(0, bad)
        assert raised.value.kind == "bad_result"


@given(_JSON, st.none() | st.text(), st.sampled_from(_FORMS))
def test_no_result_is_taken_for_an_error(result: Any, custom_id: str | None, form: ResultFormat) -> None:
    line = encode_result(5, result, custom_id, form)
    assert b"\n" not in line
    assert error_kind(line) is None


@given(st.text(min_size=1), st.text(), _JSON, st.sampled_from(_FORMS))
def test_every_error_is_told(kind: str, message: str, custom_id: Any, form: ResultFormat) -> None:
    assert error_kind(encode_error(5, kind, message, custom_id, form)) == kind


@given(st.binary())
def test_other_lines_are_no_errors(line: bytes) -> None:
    assert error_kind(line) is None
    assert error_kind(b'{"error":{' + line) is None


def test_pickle_lines() -> None:
    line = encode_pickle(4, b"\x80\x04N.")
    assert line == b'{"pickle":"gAROLg==","index":4}'


def test_custom_id() -> None:
    assert custom_id_of(b'{"custom_id":"a","x":[1]}') == "a"
    assert custom_id_of(b'{"x":1}') is None
    assert custom_id_of(b"{") is None
