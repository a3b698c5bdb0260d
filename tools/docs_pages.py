"""Pages of the site that are made when it is built: a hook of mkdocs (see mkdocs.yml).

The command reference comes from the command line, the API reference from the public names (mkdocstrings fills in their
docstrings), the tutorials from the notebooks with their outputs.
"""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import typer

import segkit
from segkit.cli import root
from segkit.cli.app import app  # with all commands registered

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.name for path in (ROOT / "docs").glob("*.ipynb"))
COMMON = """The commands as `segkit COMMAND --help` describes them, in the order of the work. All of them have
`--json`, `--quiet` and `--log`, too: see [Commands in scripts](commands.md)."""
COMMON_OPTIONS = {"--json", "--quiet", "--log", "--help"}

sys.path.insert(0, str(ROOT / "tools"))  # mkdocs runs this file by its path

from flowchart import draw_svg  # noqa: E402


def escaped(text: str) -> str:
    """Return text as Markdown that shows it unchanged, in a table, too."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def table(heads: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| `{name}` | {escaped(meaning)} |" for name, meaning in rows]
    return "\n".join([f"| {heads[0]} | {heads[1]} |", "|---|---|", *lines]) if rows else ""


def command_parts(name: str, command: Any, parent: Any) -> Iterator[str]:
    """Yield the blocks of one command's section: usage, help, arguments, options, examples."""
    context = typer.Context(command, info_name=name, parent=parent)
    yield f"### {context.command_path}"
    yield escaped(command.help or "")
    if hasattr(command, "commands"):
        for below, one in command.commands.items():
            yield from command_parts(below, one, context)
        return
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"```text\n{usage}\n```"
    records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
    for parameter in command.get_params(context):
        if COMMON_OPTIONS.isdisjoint(parameter.opts) and (record := parameter.get_help_record(context)):
            records[parameter.param_type_name].append(record)
    yield table(("argument", "meaning"), records["argument"])
    yield table(("option", "meaning"), records["option"])
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.strip().startswith("segkit ")]
    if examples:
        yield "\n".join(["Examples:", "", "```sh", *examples, "```"])


def command_page() -> str:
    """Return the help of every command, in the groups of `segkit --help`."""
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="segkit")
    parts = ["# All commands and options", COMMON]
    for title, names in root._GROUPS.items():
        parts.append(f"## {title}")
        for name in names:
            parts += command_parts(name, group.commands[name], context)
    return "\n\n".join(part for part in parts if part) + "\n"


def api_page() -> str:
    """Return the public names, each with the mark at which mkdocstrings puts its docstring."""
    names = sorted(name for name in segkit.__all__ if not name.startswith("__"))
    intro = "Each command is a function of the same name. How to use them: [In Python](python.md)."
    return "\n\n".join(["# Python API", intro, *(f"::: segkit.{name}" for name in names)]) + "\n"


def _output(output: dict[str, Any], cell: str) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        code = "".join(data["image/png"]).strip()
        return f'<img alt="Result of {html.escape(cell.splitlines()[0])}" src="data:image/png;base64,{code}">'
    if "text/html" in data:
        return "".join(data["text/html"])
    return f"```text\n{''.join(output.get('text') or data['text/plain'])}\n```"


def notebook_page(name: str) -> str:
    """Return a notebook with the outputs that it holds."""
    notebook = json.loads((ROOT / "docs" / name).read_text(encoding="utf-8"))
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if is_code else source)
        parts += [_output(one, source) for one in cell.get("outputs", ())]
    return "\n\n".join([*parts, f"This page is a notebook: [download it]({name})."]) + "\n"


def root_page(name: str) -> Callable[[], str]:
    """Return what reads a page beside the folder of the others."""
    return lambda: (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


# The pages that are made: {file among the pages: what makes its Markdown}.
PAGES: dict[str, Callable[[], str]] = {
    **{name.replace(".ipynb", ".md"): partial(notebook_page, name) for name in NOTEBOOKS},
    "command-reference.md": command_page,
    "api.md": api_page,
    "changelog.md": root_page("CHANGELOG.md"),
    "contributing.md": root_page("CONTRIBUTING.md"),
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Draw flowcharts, and let links to notebooks lead to their pages."""
    markdown = re.sub(
        r"^```mermaid\n(.*?)^```", lambda found: draw_svg(found[1]), markdown, flags=re.DOTALL | re.MULTILINE
    )
    for name in NOTEBOOKS:
        made = name.replace(".ipynb", ".md")
        if page.file.src_uri != made:  # which has a link to download it
            markdown = markdown.replace(f"]({name})", f"]({made})")
    return markdown
