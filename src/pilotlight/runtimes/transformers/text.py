"""From generated ids to text, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"
"""What a tokenizer shows for bytes that are not a whole character yet."""


class StopWatch:
    """Follows one row's text as it grows and looks for its stop strings. Only for rows that have some.

    Decodes a few trailing tokens each time, not the whole answer; a token whose text depends on its neighbours is
    decoded together with the one before it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._skip = skip_special_tokens
        self._text = ""
        self._before = 0
        self._read = 0
        self._searched = 0

    def found(self, ids: Sequence[int], *, include: bool, search: bool = True) -> str | None:
        """The final text if a stop string is in it now, else None. `ids`: all that was generated."""
        old = self._decode(ids[self._before : self._read])
        new = self._decode(ids[self._before :])
        if len(new) <= len(old) or new.endswith(UNFINISHED):
            return None
        self._text += new[len(old) :]
        self._before, self._read = self._read, len(ids)
        if not search:
            self._searched = len(self._text)
            return None
        reach = max(len(text) for text in self._stop)
        start = max(0, self._searched - reach + 1)
        self._searched = len(self._text)
        hits = [(place, text) for text in self._stop if (place := self._text.find(text, start)) >= 0]
        if not hits:
            return None
        place, text = min(hits, key=lambda hit: hit[0])
        return self._text[: place + len(text)] if include else self._text[:place]

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(self._tokenizer, ids, skip_special_tokens=self._skip) if ids else ""


def decode(tokenizer: Any, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """The text of generated ids, spaces as the tokens have them."""
    return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
