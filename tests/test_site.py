"""The site: its navigation, the pages that are made, and messages that the troubleshooting page quotes."""

import ast
import importlib
import itertools
import re
import sys

import pytest
import typer
import yaml
from house import modules
from places import ROOT

import segkit
from segkit.cli import root

DOCS = ROOT / "docs"


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose one function does not matter here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


@pytest.fixture
def docs_pages(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    yield importlib.import_module("docs_pages")
    for name in ("docs_pages", "flowchart"):
        sys.modules.pop(name, None)


def entries(nav):
    """Pages of a navigation."""
    return [nav] if isinstance(nav, str) else [page for one in nav for part in one.values() for page in entries(part)]


def test_the_navigation_has_every_page_once(docs_pages):
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)["nav"]
    assert sorted(entries(nav)) == sorted([*(page.name for page in DOCS.glob("*.md")), *docs_pages.PAGES])


def test_warnings_fail_the_build_of_the_site():
    """With --quiet, mkdocs drops warnings before --strict counts them."""
    [line] = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "mkdocs build" in line]
    assert "--strict" in line
    assert "--quiet" not in line


def test_links_of_pages_that_are_made_lead_to_pages(docs_pages):
    for name, make in docs_pages.PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", make()):
            assert target in docs_pages.PAGES or (DOCS / target).is_file(), f"{name} links to {target}"


def test_the_reference_has_every_command_with_its_options(docs_pages):
    parts = re.split(r"^##+ ", docs_pages.command_page(), flags=re.MULTILINE)
    sections = {part.partition("\n")[0]: part for part in parts if part.startswith("segkit ")}
    group = typer.main.get_command(root.app)
    commands = {f"segkit {name}": command for name, command in group.commands.items()}
    commands |= {f"segkit assess {name}": one for name, one in group.commands["assess"].commands.items()}
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        options = {option for one in command.params for option in one.opts if option.startswith("--")}
        missing = {option for option in options if not re.search(rf"{option}\b", sections[name])}
        assert missing <= docs_pages.COMMON_OPTIONS, name


def test_cells_show_what_is_written_in_them(docs_pages):
    markdown = pytest.importorskip("markdown")
    for text in ("a | b", "*all* of [them]", "<FILE>", "one_two_three", r"a\b `c`"):
        shown = markdown.markdown(docs_pages.table(("a", "b"), [("--x", text)]), extensions=["tables"])
        cells = re.findall(r"<td>(.*?)</td>", shown)
        assert len(cells) == 2
        assert "<" not in cells[1]
        assert cells[1].replace("&lt;", "<").replace("&gt;", ">") == text


def test_the_api_page_has_every_public_name(docs_pages):
    found = re.findall(r"^::: segkit\.(\w+)$", docs_pages.api_page(), re.MULTILINE)
    assert set(found) == set(segkit.__all__) - {"__version__"}


def test_flowcharts_point_down_and_boxes_lie_apart(docs_pages):
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    flowchart = sys.modules["flowchart"]
    arrows = flowchart.read_arrows(text)
    places, ways = flowchart.place(arrows)
    assert [(way[0], way[-1]) for way in ways] == arrows
    for above, below in itertools.chain(*map(itertools.pairwise, ways)):
        assert places[below][1] == places[above][1] + 1
    assert len(set(places.values())) == len(places)
    assert len(re.findall("<rect", flowchart.draw_svg(text))) == len(set(itertools.chain(*arrows)))


def literals():
    """Texts of the source, with a NUL in place of what is filled in."""
    for file in modules().values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(one.value) if isinstance(one, ast.Constant) else "\0" for one in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def quoted_messages():
    return re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_messages_that_are_explained_exist():
    """What a message says between its names and numbers stands in one text of the source."""
    texts = [text.replace("\n", " ") for text in literals()]
    messages = quoted_messages()
    assert len(messages) >= 25
    for message in messages:
        parts = message.split("…")
        pattern = re.compile(".*".join(map(re.escape, parts)))
        assert any(pattern.search(text) for text in texts if max(parts, key=len) in text), message
