"""What rows have in common: which prefixes of token ids are worth being computed once.

Pure reckoning on lists of ids (not of characters: a tokenizer may merge across the seam). Rows are sorted, so that
those which begin alike are neighbours; the prefixes form a tree, from what all rows share to what a few share. One is
worth keeping where it saves more tokens than the passes cost that it adds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

TOKENS_MIN = 16
"""Shorter prefixes cost more in copying and masks than they save."""
ROWS_MIN = 4
WINDOW_ROWS = 128
"""So many of the last rows are compared."""
LOOK_ROWS = 256
"""They are compared again after so many more rows, at the latest."""


class Window:
    """The last rows of one operation, and when to compare them."""

    def __init__(self) -> None:
        self.rows: deque[list[int]] = deque(maxlen=WINDOW_ROWS)
        self._unseen = 0
        self._seen = 0

    def add(self, rows: Sequence[list[int]]) -> bool:
        """Whether it is time to compare: often at first, so that the first batch shares already."""
        self.rows.extend(rows)
        self._unseen += len(rows)
        if self._unseen < max(ROWS_MIN, min(LOOK_ROWS, self._seen // 2)):
            return False
        self._seen += self._unseen
        self._unseen = 0
        return True


def worth_keeping(rows: Sequence[list[int]], *, scale: float, saved_min: float) -> list[list[int]]:
    """Prefixes that save at least `saved_min` tokens beyond a shorter one in the list; shorter ones come first.

    scale: how many rows each of these stands for. Every row that begins with a prefix has a token after it.
    """
    ordered = sorted(rows)
    shared = [_common(one, other) for one, other in pairwise(ordered)]
    found: list[list[int]] = []
    spans = [(0, len(ordered), 0)]
    while spans:
        start, stop, length = spans.pop()
        if stop - start < ROWS_MIN:
            continue
        common = min(shared[start : stop - 1])
        saved = ((stop - start) * scale - 1) * (common - length)
        kept = common - length >= TOKENS_MIN and saved >= saved_min
        if kept:
            found.append(ordered[start][:common])
        cuts = [start, *(at + 1 for at in range(start, stop - 1) if shared[at] == common), stop]
        spans += [(low, high, common if kept else length) for low, high in pairwise(cuts)]
    return sorted(found, key=len)


def _common(one: list[int], other: list[int]) -> int:
    """Leading ids that both have, and both go on after."""
    low, high = 0, min(len(one), len(other)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
