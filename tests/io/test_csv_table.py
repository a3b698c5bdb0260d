import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.errors import DataError, MissingFileError
from segkit.io.csv_table import decode_utf8, read_csv

# Without what separates cells, and without spaces, which are removed around a cell.
CELL = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=5)


@given(rows=st.lists(st.tuples(CELL, CELL, CELL), max_size=4), delimiter=st.sampled_from(",;\t"), marked=st.booleans())
def test_a_table_reads_the_same_with_each_delimiter(tmp_path_factory, rows, delimiter, marked):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    with path.open("w", encoding="utf-8-sig" if marked else "utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("one", "two", "three"), *rows])
    table = read_csv(path, "table")
    assert table.columns == ("one", "two", "three")
    assert [tuple(row.cells.values()) for row in table.rows] == [row for row in rows if any(row)]


def test_numbers_and_missing_cells(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x;y\n1,5;2.25\n\n3\n1.000,5;nan\n")
    first, second, third = read_csv(path, "table").rows
    assert (first.number("x"), first.number("y"), second.number("x")) == (1.5, 2.25, 3)
    assert (second.cells["y"], second.place) == ("", f"{path}: line 4")
    for column in "xy":
        with pytest.raises(DataError, match=rf"t\.csv: line 5: {column} is '.*'; it must be a number"):
            third.number(column)
    path.write_text('x,y\n"1,5",2\n')
    with pytest.raises(DataError, match="x is '1,5'"):
        read_csv(path, "table").rows[0].number("x")


def test_rows_that_do_not_fit_the_header_are_no_table(tmp_path):
    """Else 12,5 of a decimal comma would be two coordinates, and a stray quotation mark a traceback."""
    path = tmp_path / "t.csv"
    path.write_text("x,y,class\n1,2,forest,,\n12,5,48,3,forest\n")
    with pytest.raises(DataError, match=r"t\.csv: line 3: has 5 cells, but the header names 3 columns"):
        read_csv(path, "table")
    path.write_text('x,y,class\n1,2,"forest\n' + 20_000 * "1,2,water\n")
    with pytest.raises(DataError, match=r"t\.csv: cannot be read as a table \(field larger .* without its counterpart"):
        read_csv(path, "table")


def test_only_line_ends_separate_rows(tmp_path):
    """Not all that str.splitlines takes for one, such as the ellipsis of Windows-1252 read as Latin-1."""
    path = tmp_path / "t.csv"
    path.write_bytes("x,class\r\n1,a\x85\r\n2,b\u2028c\r3,d\x0ce\n".encode())
    assert [tuple(row.cells.values()) for row in read_csv(path, "table").rows] == [
        ("1", "a"), ("2", "b\u2028c"), ("3", "d\x0ce"),
    ]  # fmt: skip


def test_a_file_that_is_not_utf8_says_where(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("x,class\n1,Wald\n2,Gewässer\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"t\.csv: line 3 is not UTF-8 \(byte 0xe4; in Windows-1252 .* '2,Gewässer'\)"):
        read_csv(path, "table")
    with pytest.raises(DataError, match="encoded as UTF-16"):
        decode_utf8("x".encode("utf-16"), path)
    with pytest.raises(MissingFileError):
        read_csv(tmp_path / "none.csv", "table")
    path.write_text("x,x\n")
    with pytest.raises(DataError, match="two columns have the name 'x'"):
        read_csv(path, "table")
