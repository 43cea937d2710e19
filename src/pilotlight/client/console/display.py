"""Showing a `Fold`: live on a terminal, a plain line every few seconds elsewhere, nothing when quiet.

All of it goes to stderr, so that stdout has the summary only.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from pilotlight.client.console.fold import Fold
from pilotlight.messages import Notice
from pilotlight.quantities import duration

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_S = 5.0


class Display(Protocol):
    """Shows how a job gets on. `update` is called several times a second; `note` at once."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *_: object) -> None: ...

    def update(self, fold: Fold, now_s: float) -> None:
        """Show the picture and its new notices."""
        ...

    def note(self, text: str, level: str = "info") -> None:
        """Say one sentence."""
        ...


def choose(*, quiet: bool, verbose: bool) -> Display:
    """The display that fits where stderr goes."""
    if quiet:
        return QuietDisplay()
    return LiveDisplay(verbose=verbose) if sys.stderr.isatty() else PlainDisplay(verbose=verbose)


class QuietDisplay:
    """Says only what went wrong."""

    def __enter__(self) -> QuietDisplay:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, fold: Fold, now_s: float) -> None:  # noqa: ARG002 - the port's shape
        """Errors only."""
        for notice in fold.take_notices():
            self.note(notice.text, notice.level)

    def note(self, text: str, level: str = "info") -> None:
        """Errors only."""
        if level == "error":
            sys.stderr.write(f"{text}\n")


class PlainDisplay:
    """For log files: a line every five seconds, and each notice as it comes."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._last_s: float | None = None
        self._first_s: float | None = None

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, fold: Fold, now_s: float) -> None:
        """A line every few seconds, the same one too: it shows that somebody is there."""
        for notice in fold.take_notices():
            if shown(notice, verbose=self._verbose):
                self.note(notice.text, notice.level)
        self._last_s = now_s if self._last_s is None else self._last_s
        self._first_s = now_s if self._first_s is None else self._first_s
        if now_s - self._last_s >= PLAIN_S:
            self._last_s = now_s
            self.note(f"{fold.line} ({duration(now_s - self._first_s)})")

    def note(self, text: str, level: str = "info") -> None:
        """One line on stderr."""
        mark = f"{level}: " if level in {"warning", "error"} else ""
        sys.stderr.write(f"pilotlight: {mark}{text}\n")


class LiveDisplay:
    """For terminals: a bar, a line per worker, notices scrolling above."""

    def __init__(self, *, verbose: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._verbose = verbose
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)

    def __enter__(self) -> LiveDisplay:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def update(self, fold: Fold, now_s: float) -> None:
        """Draw anew."""
        for notice in fold.take_notices():
            if shown(notice, verbose=self._verbose):
                self.note(notice.text, notice.level)
        self._live.update(_picture(fold, now_s))

    def note(self, text: str, level: str = "info") -> None:
        """A line above the live part."""
        from rich.text import Text

        styles = {"warning": "yellow", "error": "bold red", "debug": "dim"}
        self._console.print(Text(text, style=styles.get(level, "")))


def shown(notice: Notice, *, verbose: bool) -> bool:
    """Whether a notice is for these eyes."""
    return verbose or notice.level != "debug"


def _picture(fold: Fold, now_s: float) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    workers = Table.grid(padding=(0, 2))
    for name, state, doing, rows in fold.worker_lines:
        style = {"live": "green", "draining": "yellow", "lost": "red"}.get(state, "")
        workers.add_row(Text(f"  {name}"), Text(state, style=style), Text(doing), Text(rows, justify="right"))
    fraction = fold.fraction
    bar = ProgressBar(total=1.0, completed=fraction or 0.0, width=48, pulse=fraction is None, animation_time=now_s)
    # A bar alone ends without a line's end; a table's row has one.
    row = Table.grid()
    row.add_row(bar)
    return Group(Text(fold.line, style="bold"), row, workers)
