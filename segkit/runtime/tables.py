"""Tables and lists of text."""

from __future__ import annotations

import html
import io
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Align columns of text: those in `left` (the first one) to the left, the others, numbers, to the right.

    Lines are as long as the table needs, so that it reads the same in a file and on a terminal of any width.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="left" if number in left else "right", no_wrap=True, header_style="none")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def list_some(texts: Sequence[object], maximum: int = 3) -> str:
    """Return texts as a list: "a, b, c and 4 more"."""
    more = f" and {len(texts) - maximum} more" if len(texts) > maximum else ""
    return ", ".join(map(str, texts[:maximum])) + more


def format_facts(title: str, facts: Sequence[tuple[str, str]]) -> str:
    """Return a title and (name, value) pairs as lines of text."""
    width = max((len(name) for name, _ in facts), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}".rstrip() for name, value in facts)])


def facts_to_html(
    title: str, facts: Sequence[tuple[str, str]], colors: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return a title and (name, value) pairs as HTML for a notebook.

    Parameters
    ----------
    colors
        {name: "#rrggbb"}: a patch of this colour is shown before the value.
    """
    rows = []
    for name, value in facts:
        patch = f'<span style="color:{colors[name]}">&#9632;</span> ' if name in colors else ""
        indent = len(name) - len(name.lstrip())
        cells = (
            f'<td style="text-align:left;padding-left:{indent}em">{html.escape(name.strip())}</td>'
            f'<td style="text-align:left">{patch}{html.escape(value)}</td>'
        )
        rows.append(f"<tr>{cells}</tr>")
    return f"<div><strong>{html.escape(title)}</strong><table>{''.join(rows)}</table></div>"


class Described:
    """Shows itself as a title and facts: as text when it is printed, as a table in a notebook."""

    def _describe(self) -> tuple[str, list[tuple[str, str]], Mapping[str, str]]:
        """Return title, (name, value) pairs, and colours as for `facts_to_html`."""
        raise NotImplementedError

    def __repr__(self) -> str:
        title, facts, _ = self._describe()
        return format_facts(title, facts)

    def _repr_html_(self) -> str:
        return facts_to_html(*self._describe())
