import pytest

from segkit.errors import UsageError
from segkit.io.quantities import Quantity, parse_area, parse_length


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5ha", Quantity(5000.0, pixels=False)),
        ("5000m2", Quantity(5000.0, pixels=False)),
        ("5000 m²", Quantity(5000.0, pixels=False)),
        (" .25 km2 ", Quantity(250_000.0, pixels=False)),
        ("12px", Quantity(12.0, pixels=True)),
        ("0ha", Quantity(0.0, pixels=False)),
    ],
)
def test_areas(text, expected):
    assert parse_area(text, "min_area") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", Quantity(10.0, pixels=False)),
        ("1.5px", Quantity(1.5, pixels=True)),
        ("0.1 km", Quantity(100.0, pixels=False)),
    ],
)
def test_lengths(text, expected):
    assert parse_length(text, "simplify") == expected


@pytest.mark.parametrize("text", ["12", "0.5", 12, 0.5, " 7 "])
def test_a_bare_number_is_refused(text):
    with pytest.raises(UsageError, match=r"min_area .*: has no unit; write 0\.5ha, 5000m2 or 12px"):
        parse_area(text, "min_area")
    with pytest.raises(UsageError, match=r"simplify .*: has no unit; write 10m or 1\.5px"):
        parse_length(text, "simplify")


@pytest.mark.parametrize("text", ["", "ha", "-1ha", "1e3m2", "nan px", "infha", "1,5ha", "1.2.3ha", "1ha 2ha", None])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=r"write 0\.5ha, 5000m2 or 12px"):
        parse_area(text, "fill_holes")


def test_a_unit_of_something_else_is_refused_with_those_that_are_known():
    with pytest.raises(UsageError, match=r"min_area 10m: unknown unit m; the units are px, m2, m², ha, km2, km²"):
        parse_area("10m", "min_area")
    with pytest.raises(UsageError, match=r"simplify 1ha: unknown unit ha; the units are px, m, km"):
        parse_length("1ha", "simplify")
