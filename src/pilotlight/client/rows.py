"""Rows as a user hands them in, made into the payload lines that replicas read."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from typing import Any, cast

import msgspec

from pilotlight.client import pickling
from pilotlight.core.errors import RequestError

_encode = msgspec.json.Encoder().encode


def prompt_line(row: Any) -> bytes:
    """A text, a list of token ids, or a dict (with `prompt`, `messages`, or the fields of a template)."""
    if isinstance(row, str):
        return _encode({"prompt": row})
    if isinstance(row, dict):
        return _encode(cast("object", row))
    if isinstance(row, list | tuple) and all(type(token) is int for token in cast("list[object]", row)):
        return _encode({"prompt_token_ids": row})
    raise RequestError(f"a row must be a text, a dict or a list of token ids, not {_type_name(cast('object', row))}")


def chat_line(row: Any) -> bytes:
    """A conversation, a text that is its only message, or a dict with `messages`."""
    if isinstance(row, str):
        return _encode({"messages": [{"role": "user", "content": row}]})
    if isinstance(row, dict):
        return _encode(cast("object", row))
    if isinstance(row, list | tuple) and all(isinstance(message, dict) for message in cast("list[object]", row)):
        return _encode({"messages": row})
    raise RequestError(
        f"a conversation must be a list of messages, a text or a dict, not {_type_name(cast('object', row))}"
    )


def pickle_line(function_name: str) -> Callable[[Any], bytes]:
    """Encoder of any Python value, for a user's function."""
    what = f"the row for {function_name}"

    def encode(row: Any) -> bytes:
        if row is None or type(row) in _PLAIN:
            return base64.b64encode(pickle.dumps(row, protocol=pickle.HIGHEST_PROTOCOL))
        return base64.b64encode(pickling.dumps(row, what))

    return encode


def _type_name(value: object) -> str:
    return type(value).__name__


_PLAIN = frozenset({str, bytes, int, float, bool})
