"""Draw the state diagrams of docs/architecture.md from the tables in core/transitions.py.

Each diagram stands between `<!-- transitions: NAME -->` and `<!-- end -->`. With `--check` nothing is written, and the
exit code says whether they are current.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pilotlight.core import transitions

PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
_PLACE = re.compile(r"(<!-- transitions: ([A-Z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def drawn(page: str) -> str:
    """The page with every diagram drawn anew."""
    return _PLACE.sub(lambda found: f"{found[1]}```mermaid\n{_diagram(found[2])}\n```\n{found[3]}", page)


def _diagram(name: str) -> str:
    # Mermaid ends a label at a colon or semicolon.
    head, *edges = transitions.mermaid(getattr(transitions, name)).split("\n")
    lines = [head]
    for edge in edges:
        arrow, why = edge.split(": ", 1)
        lines.append(f"{arrow}: {why.replace(':', ' -').replace(';', ',')}")
    return "\n".join(lines)


def main() -> int:
    """Draw, or check."""
    before = PAGE.read_text(encoding="utf-8")
    after = drawn(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print(f"{PAGE.name} shows old diagrams: run make diagrams", file=sys.stderr)
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
