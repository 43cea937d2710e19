"""How many tokens one forward pass may hold: found by running, not configured.

The budget follows the measured speed, so that a pass takes about `PASS_S`, and shrinks by half when memory runs out.
It never again exceeds a size that failed.
"""

from __future__ import annotations

PASS_S = 0.2
SLOW_PASS_S = 1.0
TOKENS_MIN = 16
TOKENS_EFFICIENT = 256
"""A smaller pass mostly waits for the weights to be read; worth up to `SLOW_PASS_S`."""
GROWTH_MAX = 2.0


class TokenBudget:
    """Padded tokens per forward pass."""

    def __init__(self, tokens: int, tokens_max: int, *, pass_s: float = 0.0) -> None:
        """pass_s: seconds that the smallest pass takes."""
        self.tokens = tokens
        self._ceiling = tokens_max
        self._pass_s = pass_s
        self._tokens_per_s: float | None = None

    @property
    def pass_tokens(self) -> float:
        """What a pass costs whatever it holds, as tokens that could be read in that time."""
        return self._pass_s * (self._tokens_per_s or self.tokens / PASS_S)

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from one pass; a pass much smaller than the budget says little and moves it little."""
        if seconds <= 0 or tokens * 4 < self.tokens:
            return
        speed = tokens / seconds
        self._tokens_per_s = speed if self._tokens_per_s is None else 0.5 * (speed + self._tokens_per_s)
        wish = max(int(self._tokens_per_s * PASS_S), min(TOKENS_EFFICIENT, int(self._tokens_per_s * SLOW_PASS_S)))
        self.tokens = max(TOKENS_MIN, min(wish, int(self.tokens * GROWTH_MAX), self._ceiling))

    def halve(self, tokens: int) -> None:
        """A pass of this many tokens did not fit."""
        self._ceiling = max(TOKENS_MIN, min(self._ceiling, tokens // 2))
        self.tokens = min(self.tokens, self._ceiling)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch, or Python, says that memory ran out (on a GPU or on the host)."""
    import torch

    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
