import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.runtime.tables import format_table

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
