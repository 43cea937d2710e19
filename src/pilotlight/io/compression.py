"""Bytes in and out of plain, gzip and zstd files.

Reading looks at the first bytes, never at the name, and takes files of several members or frames. Writing makes one
complete member or frame per call, so that what was appended so far is always a valid file.
What does not live here: lines (`lines.py`).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Literal, Protocol

from pilotlight.core.errors import InputError

Form = Literal["plain", "gzip", "zstd"]

_PLAIN_BYTES = 1 << 20
_PACKED_BYTES = 1 << 16
_GZIP_LEVEL = 4
_ZSTD_LEVEL = 3
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_FOREIGN = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"ARROW1": "an Arrow file",
    b"Obj\x01": "an Avro file",
}


class _Unpacker(Protocol):
    """What zlib's and zstandard's decompressobj share."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def form_of_name(path: str) -> Form:
    """What a file that is to be written under this name should be."""
    if path.endswith(".gz"):
        return "gzip"
    return "zstd" if path.endswith(".zst") else "plain"


def pack(data: bytes, form: Form) -> bytes:
    """One complete member or frame (the data itself if plain). Equal data give equal bytes."""
    if form == "gzip":
        packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
        return packer.compress(data) + packer.flush()
    if form == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compress(data)
    return data


class ByteReader:
    """The content of one file from the front, decompressed.

    `read` gives about a MiB at a time and b"" at the end. Raises `InputError` that names the file as `name`.
    """

    def __init__(self, path: str, name: str) -> None:
        self.path = path
        self.name = name
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _open_error(name, error) from None
        self.raw_bytes = 0
        """Bytes taken from the disk so far."""
        self._spare = b""
        self._unpacker: _Unpacker | None = None
        try:
            self.raw_total = os.fstat(self._fd).st_size
            head = self._read_raw(_PACKED_BYTES)
            while 0 < len(head) < 8 and (more := self._read_raw(_PACKED_BYTES)):
                head += more
            self._new_unpacker = self._detect(head)
        except BaseException:
            os.close(self._fd)
            raise
        self._spare = head

    def read(self) -> bytes:
        """The next bytes; empty only at the end."""
        if self._new_unpacker is None:
            head, self._spare = self._spare, b""
            return head or self._read_raw(_PLAIN_BYTES)
        while True:
            data = self._spare or self._read_raw(_PACKED_BYTES)
            self._spare = b""
            if self._unpacker is None:
                if not data:
                    return b""
                # Zero padding after a member is legal (tapes, block devices).
                data = data.lstrip(b"\0")
                if not data:
                    continue
                self._unpacker = self._new_unpacker()
            elif not data:
                raise InputError(f"{self.name} is cut off: its compressed data end too early; copy or make it again")
            try:
                out = self._unpacker.decompress(data)
            except Exception as error:  # zlib.error and ZstdError share no other base
                raise InputError(f"{self.name} is damaged: its compressed data don't decode ({error})") from None
            if self._unpacker.eof:
                self._spare = self._unpacker.unused_data
                self._unpacker = None
            if out:
                return out

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_raw(self, count: int) -> bytes:
        try:
            data = os.read(self._fd, count)
        except OSError as error:
            raise _open_error(self.name, error) from None
        self.raw_bytes += len(data)
        return data

    def _detect(self, head: bytes) -> Callable[[], _Unpacker] | None:
        if head.startswith(_GZIP):
            return lambda: zlib.decompressobj(31)
        if head.startswith(_ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F):
            import zstandard

            return zstandard.ZstdDecompressor().decompressobj
        for magic, what in _FOREIGN.items():
            if head.startswith(magic):
                raise InputError(f"{self.name} is {what}, not UTF-8 text with one JSON object per line")
        if b"\0" in head:
            raise InputError(f"{self.name} is not a text file: it should have one JSON object per line")
        return None


def _open_error(name: str, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"there is no file {name}")
    if isinstance(error, IsADirectoryError):
        return InputError(f"{name} is a folder, not a file")
    if isinstance(error, PermissionError):
        return InputError(f"no permission to read {name}")
    return InputError(f"can't read {name}: {error.strerror or error}")
