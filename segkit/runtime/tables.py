"""Tables and lists of text."""

from __future__ import annotations

import io
from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns of text: the first one to the left, the others, numbers, to the right.

    Lines are as long as the table needs, so that it reads the same in a file and on a terminal of any width.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=True, header_style="none")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def list_some(texts: Sequence[object], maximum: int = 3) -> str:
    """Return texts as a list: "a, b, c and 4 more"."""
    more = f" and {len(texts) - maximum} more" if len(texts) > maximum else ""
    return ", ".join(map(str, texts[:maximum])) + more
