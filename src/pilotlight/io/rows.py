"""What rows mean: an input line to a payload, an answer to an output line, and which output lines are errors.

Everything is one line of compact UTF-8 JSON. Used in replicas (all rows), in the manager (the error rows of requests
that never got an answer), and by whoever reads an output again. Nothing is unpickled here.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

import msgspec

from pilotlight.core.errors import RequestError
from pilotlight.wire import ResultFormat

_ENCODE_ERRORS = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)
_DECODE_ERRORS = (msgspec.DecodeError, ValueError, RecursionError)

# Everything else is the service's fault in the eyes of an OpenAI client.
_FAULTS_OF_ROW = frozenset({"bad_row", "prompt_too_long", "unsupported"})


class _Pickle(msgspec.Struct, omit_defaults=True):
    pickle: bytes
    index: int = -1


class _Fault(msgspec.Struct):
    kind: str | None = None
    code: str | None = None


class _Output(msgspec.Struct):
    """Just what tells results from errors; other fields are passed over undecoded."""

    error: _Fault | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _CustomId(msgspec.Struct):
    custom_id: Any = None


def _plain(value: Any) -> Any:
    """NumPy and torch scalars and arrays, which users' functions return, without importing either."""
    if callable(turn := getattr(value, "tolist", None)):
        return turn()
    raise TypeError(f"a value of type {type(value).__name__}")


_decode = msgspec.json.Decoder().decode
_decode_output = msgspec.json.Decoder(_Output).decode
_decode_custom_id = msgspec.json.Decoder(_CustomId).decode
_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def decode_row(line: bytes, origin: str, line_number: int) -> dict[str, Any]:
    """The payload of an input line. Raises `RequestError` that names the file and the line."""
    try:
        row: object = _decode(line)
    except _DECODE_ERRORS as error:
        raise RequestError(f"{origin} line {line_number}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise RequestError(f"{origin} line {line_number}: not a JSON object but {_called(row)}")
    return cast("dict[str, Any]", row)


def custom_id_of(line: bytes) -> Any:
    """The `custom_id` of an input line; None if it has none or can't be decoded."""
    with contextlib.suppress(*_DECODE_ERRORS):
        return _decode_custom_id(line).custom_id
    return None


def encode_result(index: int, result: Any, custom_id: Any = None, form: ResultFormat = "pilotlight") -> bytes:
    """The output line of an answer. Raises `RequestError` (kind `bad_result`) for what JSON can't say.

    openai: `result` is the response's body, as in the answer of `/v1/chat/completions`.
    """
    try:
        if form == "openai":
            response = {"status_code": 200, "request_id": f"req_{index}", "body": result}
            return _encode({"id": f"batch_req_{index}", "custom_id": custom_id, "response": response, "error": None})
        if custom_id is None:
            return _encode({"index": index, "result": result})
        return _encode({"index": index, "custom_id": custom_id, "result": result})
    except _ENCODE_ERRORS as error:
        wrong = RequestError(f"the result can't be written as JSON: {error}")
        wrong.kind = "bad_result"
        raise wrong from None


def encode_error(
    index: int, kind: str, message: str, custom_id: Any = None, form: ResultFormat = "pilotlight"
) -> bytes:
    """The output line of a request that got no answer. Never raises on odd text.

    openai: both conventions at once: `error` is filled as in vLLM's run-batch, and the response's body holds the
    HTTP error as in OpenAI's error files.
    """
    # Text of users' exceptions may hold lone surrogates, which UTF-8 can't.
    message = message.encode("utf-8", "replace").decode()
    if form == "openai":
        fault = kind in _FAULTS_OF_ROW
        called = "invalid_request_error" if fault else "server_error"
        body = {"error": {"message": message, "type": called, "param": None, "code": kind}}
        response = {"status_code": 400 if fault else 500, "request_id": f"req_{index}", "body": body}
        error = {"code": kind, "message": message}
        return _encode({"id": f"batch_req_{index}", "custom_id": custom_id, "response": response, "error": error})
    error = {"kind": kind, "message": message}
    if custom_id is None:
        return _encode({"index": index, "error": error})
    return _encode({"index": index, "custom_id": custom_id, "error": error})


def encode_pickle(index: int, pickled: bytes) -> bytes:
    """A line that carries a pickled Python value: a row, or its result."""
    return _encode(_Pickle(pickled, index))


def error_kind(line: bytes) -> str | None:
    """The kind of error that an output line of either form reports; None for a result."""
    # Necessary in both forms as they are written here; a result may hold it too, so the parse decides.
    if b'"error":{' not in line:
        return None
    try:
        row = _decode_output(line)
    except _DECODE_ERRORS:
        return None
    if row.error is None or row.result is not msgspec.UNSET:
        return None
    return row.error.kind or row.error.code


def _called(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return "a string"
    return "true or false" if isinstance(value, bool) else "a number"
