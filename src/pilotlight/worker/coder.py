"""From a row's bytes to what a model gets, and back, for one operation.

`io/rows.py` knows the forms; this picks the ones of the operation, and is where pickles of the Python API are opened:
in the replica, and nowhere else.
"""

from __future__ import annotations

import base64
import pickle
from typing import Any

from pilotlight.core.errors import RequestError
from pilotlight.io import rows
from pilotlight.wire import Operation, ResultFormat


class Coder:
    """Decodes rows and encodes answers of one operation. Every failure is a `RequestError`: the row's fault."""

    def __init__(self, operation: Operation) -> None:
        self._form: ResultFormat = operation.result_format
        self._pickled = operation.row_format == "pickle"

    def decode(self, line: bytes, origin: str, line_number: int) -> tuple[Any, Any]:
        """The payload and the `custom_id` of a row."""
        if self._pickled:
            try:
                return pickle.loads(base64.b64decode(line)), None  # noqa: S301 - from this user's own client, over a private socket
            except Exception as error:  # a user's class may raise anything as it comes to life
                raise RequestError(f"the row can't be unpickled here: {type(error).__name__}: {error}") from error
        payload = rows.decode_row(line, origin, line_number)
        return payload, payload.get("custom_id")

    def result(self, index: int, custom_id: Any, result: Any) -> bytes:
        """The output line of a result."""
        if self._pickled:
            import cloudpickle

            try:
                return rows.encode_pickle(index, cloudpickle.dumps(result))  # pyright: ignore[reportUnknownMemberType]
            except Exception as error:
                wrong = RequestError(f"the result can't be pickled: {type(error).__name__}: {error}")
                wrong.kind = "bad_result"
                raise wrong from error
        return rows.encode_result(index, result, custom_id, self._form)

    def error(self, index: int, custom_id: Any, kind: str, text: str) -> bytes:
        """The output line of an error."""
        return rows.encode_error(index, kind, text, custom_id, self._form)
