"""Draw docs/images from a real run of `pilotlight demo`: the terminal in the middle of the run, and at its end.

The command runs in a pseudo-terminal; a terminal emulator (pyte) keeps its screen, and rich turns the screen into SVG.
"""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyte
from rich.color import ColorParseError
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).parent.parent
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"
IMAGES = ROOT / "docs" / "images"
COLUMNS, LINES = 120, 40
MID_RUN_S = 1.0
"""How long after the kill the picture in the middle is taken."""


def watched(command: list[str], folder: str) -> tuple[list[Text], list[Text]]:
    """The screen a moment after a worker was killed, and at the end."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ.update(COLUMNS=str(COLUMNS), LINES=str(LINES), TERM="xterm-256color", HOME=folder)
        os.execv(command[0], command)
    middle: list[Text] = []
    killed_s: float | None = None
    while True:
        ready, _, _ = select.select([terminal], [], [], 0.1)
        if ready:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                break
            if not data:
                break
            stream.feed(data)
        if killed_s is None and any("killing" in line for line in screen.display):
            killed_s = time.monotonic()
        if killed_s is not None and not middle and time.monotonic() - killed_s > MID_RUN_S:
            middle = shown(screen)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"the demo ended with exit code {os.waitstatus_to_exitcode(status)}")
    return middle, shown(screen)


def shown(screen: Any) -> list[Text]:
    """The screen's lines down to the last that is not empty, styled."""
    last = max((at for at, line in enumerate(screen.display) if line.strip()), default=0)
    return [_line(screen.buffer[at]) for at in range(last + 1)]


def _line(cells: Any) -> Text:
    text = Text()
    for at in range(COLUMNS):
        cell = cells[at]
        text.append(cell.data, Style(color=_colour(cell.fg), bold=cell.bold, italic=cell.italics))
    text.rstrip()
    return text


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    name = {"brown": "yellow"}.get(name.removeprefix("bright"), name)
    try:
        Style(color=name)
    except ColorParseError:
        return f"#{name}"
    return name


def draw(lines: list[Text], path: Path) -> None:
    """Write an SVG."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, highlight=False)
        console.print(Text("$ ", style="dim") + Text("pilotlight demo", style="bold"))
        for line in lines:
            console.print(line, overflow="crop", no_wrap=True)
        drawn = console.export_svg(title="pilotlight demo")
    # An image in a page may not fetch fonts.
    drawn = re.sub(r"@font-face {.*?}\s*", "", drawn, flags=re.DOTALL)
    path.write_text(drawn.replace("Fira Code, monospace", FONTS), encoding="utf-8")


def main() -> None:
    """Run, and draw both."""
    with tempfile.TemporaryDirectory() as folder:
        middle, end = watched([sys.executable, "-m", "pilotlight", "demo"], folder)
    IMAGES.mkdir(parents=True, exist_ok=True)
    if middle:
        draw(middle, IMAGES / "demo-running.svg")
    draw(end, IMAGES / "demo.svg")


if __name__ == "__main__":
    main()
