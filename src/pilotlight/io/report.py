"""The report beside a finished output: which request made it, what is in it, and which input it answers.

The sink writes what it needs to know the output again; whoever ran the job adds what people want to read.
"""

from __future__ import annotations

import base64
import contextlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from pilotlight.io.fingerprint import BLOCK_ROWS, BlockCrc


def report_path(output: str) -> str:
    """`answers.jsonl` -> `answers.jsonl.report.json`."""
    return output + ".report.json"


def read_report(output: str) -> dict[str, Any] | None:
    """The report of a finished output; None if there is none, or none that can be read."""
    with contextlib.suppress(OSError, msgspec.DecodeError), open(report_path(output), "rb") as file:
        return msgspec.json.decode(file.read(), type=dict[str, Any])
    return None


def encode_report(fields: Mapping[str, Any]) -> bytes:
    """As people read it."""
    return msgspec.json.format(msgspec.json.encode(dict(fields), enc_hook=str), indent=2) + b"\n"


def pack_crcs(blocks: Iterable[BlockCrc]) -> str:
    """Base64 of one little-endian CRC-32 per block of the input, in order."""
    crcs = [crc for _, _, crc in sorted(blocks)]
    return base64.b64encode(struct.pack(f"<{len(crcs)}I", *crcs)).decode()


def unpack_crcs(packed: str, rows: int) -> list[BlockCrc]:
    """The blocks of an input of so many rows; none if the text does not fit."""
    with contextlib.suppress(ValueError, struct.error):
        data = base64.b64decode(packed, validate=True)
        crcs = struct.unpack(f"<{len(data) // 4}I", data)
        if len(crcs) == -(-rows // BLOCK_ROWS):
            return [(at, min(BLOCK_ROWS, rows - at * BLOCK_ROWS), crc) for at, crc in enumerate(crcs)]
    return []
