"""Draw which package of segkit imports which, as a mermaid diagram, into docs/architecture.md.

`python tools/draw_imports.py` writes the diagram between its two markers; with `--check` it writes nothing, and the
exit code is 1 where the page shows another one.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- imports: tools/draw_imports.py -->\n", "<!-- end of imports -->\n"


def arrows() -> dict[str, set[str]]:
    """{package or module below segkit/: what it imports, anywhere in its files}."""
    found: dict[str, set[str]] = {}
    for file in sorted((ROOT / "segkit").rglob("*.py")):
        place = file.relative_to(ROOT / "segkit").with_suffix("").parts[0]
        if place.startswith("__"):
            continue
        own = found.setdefault(place, set())
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            own |= {name.split(".")[1] for name in names if name.startswith("segkit.")} - {place}
    return found


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out arrows that a longer way says, too."""

    def below(name: str) -> set[str]:
        return {name}.union(*(below(one) for one in graph[name]))

    return {
        name: {one for one in own if not any(one in below(other) for other in own - {one})}
        for name, own in graph.items()
    }


def diagram() -> str:
    """Return the mermaid text; what is imported lies below."""
    lines = [f"  {name} --> {below}" for name, own in reduced(arrows()).items() for below in sorted(own)]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```", ""])


def main() -> int:
    text = PAGE.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    wanted = before + START + diagram() + END + after
    if "--check" in sys.argv[1:]:
        return int(text != wanted)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
