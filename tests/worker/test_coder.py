"""What a replica decodes and encodes, per operation."""

from __future__ import annotations

import base64
import json
import pickle

import pytest

from pilotlight.core.errors import RequestError
from pilotlight.wire import Operation
from pilotlight.worker.coder import Coder


class Awkward:
    """Comes to life badly."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return int, ("no number",)


def test_json_rows() -> None:
    coder = Coder(Operation(kind="echo"))
    assert coder.decode(b'{"custom_id": "a", "n": 1}', "f", 3) == ({"custom_id": "a", "n": 1}, "a")
    with pytest.raises(RequestError, match="f line 3"):
        coder.decode(b"[1]", "f", 3)
    assert json.loads(coder.result(4, "a", {"x": 1})) == {"index": 4, "custom_id": "a", "result": {"x": 1}}
    assert json.loads(coder.error(4, None, "k", "t")) == {"index": 4, "error": {"kind": "k", "message": "t"}}


def test_pickled_rows() -> None:
    coder = Coder(Operation(kind="map", row_format="pickle"))
    assert coder.decode(base64.b64encode(pickle.dumps({1, 2})), "", 0) == ({1, 2}, None)
    with pytest.raises(RequestError, match="unpickled"):
        coder.decode(base64.b64encode(pickle.dumps(Awkward())), "", 0)
    line = json.loads(coder.result(7, None, {3}))
    assert line["index"] == 7
    assert pickle.loads(base64.b64decode(line["pickle"])) == {3}
    with pytest.raises(RequestError, match="pickled"):
        coder.result(0, None, (n for n in range(3)))
