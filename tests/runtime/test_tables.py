from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.runtime.tables import Described, format_table, list_some

WORD = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(WORD, min_size=n, max_size=n), min_size=2, max_size=6)))
def test_columns_are_aligned_and_nothing_is_cut(rows):
    lines = format_table(rows[0], rows[1:]).splitlines()
    assert [line.split() for line in lines] == rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    starts = [sum(widths[:number]) + 2 * number for number in range(len(widths))]
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(row[0])
        for start, width, cell in zip(starts[1:], widths[1:], row[1:], strict=True):
            assert line[start : start + width] == cell.rjust(width)


@pytest.mark.parametrize("cell", ["[bold]", "[/]", "a\\b", "ä €", "x" * 300])
def test_cells_are_text_and_no_markup(cell):
    assert cell in format_table(("name", "value"), [(cell, "1")])


def test_empty_cells_and_spaces_before_a_name_stay():
    assert format_table(("", "a"), [("  x", ""), ("y", "1")]) == "     a\n  x\ny    1"


@given(st.lists(WORD, max_size=6), st.integers(1, 4))
def test_a_list_names_some_and_counts_the_others(texts, maximum):
    said, _, more = list_some(texts, maximum).partition(" and ")
    assert said == ", ".join(texts[:maximum])
    assert more == (f"{len(texts) - maximum} more" if len(texts) > maximum else "")


class Page(HTMLParser):
    """Text and attributes of the elements of some HTML."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [value for _, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def test_facts_are_lines_and_the_rows_of_a_table_in_which_names_are_text():
    class Found(Described):
        def _describe(self):
            facts = [("<i>", "<b>a</b> & b"), ("  forest", "2 ha"), ("empty", "")]
            return "Map <1>", facts, {"  forest": "#1b7837"}

    assert repr(Found()).split("\n") == ["Map <1>", "  <i>       <b>a</b> & b", "    forest  2 ha", "  empty"]
    page = Page(Found()._repr_html_())
    assert [text.strip() for text in page.texts if text.strip()] == [
        "Map <1>", "<i>", "<b>a</b> & b", "forest", "\N{BLACK SQUARE}", "2 ha", "empty",
    ]  # fmt: skip
    assert "color:#1b7837" in page.attributes
    assert "text-align:left;padding-left:2em" in page.attributes
