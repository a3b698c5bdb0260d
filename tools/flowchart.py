"""Draw a mermaid flowchart as SVG, for pages that load no mermaid: `A --> B` lines, what is pointed to lies below."""

from __future__ import annotations

import itertools
import re

_ROW_PX, _COLUMN_PX, _BOX_HEIGHT_PX, _CHARACTER_PX = 74, 108, 28, 8
_SWEEPS = 8  # in which rows are sorted by their neighbours

Node = str | tuple[str, str, int]  # a box, or where an arrow passes a row


def read_arrows(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^\s*(\w+) --> (\w+)\s*$", text, re.MULTILINE)


def rows_of(arrows: list[tuple[str, str]]) -> dict[str, int]:
    """Return the row of each node: the longest way to it from the top."""
    row = dict.fromkeys(itertools.chain(*arrows), 0)
    for _ in row:
        for above, below in arrows:
            row[below] = max(row[below], row[above] + 1)
    return row


def place(arrows: list[tuple[str, str]]) -> tuple[dict[Node, tuple[float, int]], list[list[Node]]]:
    """Return {node: (column, row)}, and each arrow as the nodes that it passes.

    An arrow over several rows has a place of its own in each, so that it crosses no box.
    """
    row: dict[Node, int] = dict(rows_of(arrows))
    ways: list[list[Node]] = []
    for above, below in arrows:
        passed: list[Node] = [(above, below, at) for at in range(row[above] + 1, row[below])]
        row |= {node: node[2] for node in passed if isinstance(node, tuple)}
        ways.append([above, *passed, below])
    rows = [[node for node in row if row[node] == at] for at in range(max(row.values()) + 1)]
    steps = [step for way in ways for step in itertools.pairwise(way)]
    column = {node: float(number) for nodes in rows for number, node in enumerate(nodes)}
    for sweep in range(_SWEEPS):
        for nodes in rows if sweep % 2 == 0 else rows[::-1]:
            near = {
                node: [column[b if a == node else a] for a, b in steps if node == (b if sweep % 2 == 0 else a)]
                for node in nodes
            }
            nodes.sort(key=lambda node: sum(near[node]) / len(near[node]) if near[node] else column[node])
            column |= {node: number - len(nodes) / 2 for number, node in enumerate(nodes)}
    return {node: (column[node], row[node]) for node in row}, ways


def draw_svg(text: str) -> str:
    """Return the flowchart as an SVG element of the class `flowchart`, whose colours the style sheet gives."""
    places, ways = place(read_arrows(text))
    left = min(column for column, _ in places.values())
    at = {node: ((column - left + 0.5) * _COLUMN_PX, (row + 0.5) * _ROW_PX) for node, (column, row) in places.items()}
    width, height = max(x for x, _ in at.values()) + _COLUMN_PX / 2, max(y for _, y in at.values()) + _ROW_PX / 2
    parts = [
        f'<svg class="flowchart" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">',
        '<marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">',
        '<path d="M0 0L8 4L0 8"/></marker>',
    ]
    half = _BOX_HEIGHT_PX / 2
    for way in ways:
        line = f"M{at[way[0]][0]:g} {at[way[0]][1] + half:g}"
        for above, below in itertools.pairwise(way):
            (x0, y0), (x1, y1) = at[above], at[below]
            y0, y1 = y0 + half, y1 - half
            middle = (y0 + y1) / 2
            line += f"C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1:g}"
            line += f"L{x1:g} {y1 + 2 * half:g}" if below != way[-1] else ""
        parts.append(f'<path marker-end="url(#arrow)" d="{line}"/>')
    for node, (x, y) in at.items():
        if isinstance(node, str):
            box = len(node) * _CHARACTER_PX + 16
            parts.append(f'<rect x="{x - box / 2:g}" y="{y - half:g}" width="{box}" height="{2 * half:g}" rx="4"/>')
            parts.append(f'<text x="{x:g}" y="{y + 5:g}">{node}</text>')
    return "\n".join([*parts, "</svg>"])
