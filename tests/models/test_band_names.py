import pytest

from segkit.models.band_names import are_named, canonical_name, distinct_parts


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("b04", "B4"),
        (" B4, central wavelength 665 nm", "B4"),
        ("tile7:red", "RED"),
        ("T32_B8A:1", "T32_B8A"),
        ("b08:1", "B8"),
        ("B10", "B10"),
        ("7", "7"),
    ],
)
def test_a_name_has_one_spelling(name, expected):
    assert canonical_name(name) == canonical_name(expected) == expected


@pytest.mark.parametrize(
    ("bands", "named", "parts"),
    [
        (("B2", "B3"), True, ("2", "3")),
        (("B02, blue", "B03, green", "B8A"), True, ("2", "3", "8A")),
        (("tile7_B11", "tile7_B12"), True, ("11", "12")),
        (("red_2019", "nir_2019"), True, ("RED", "NIR")),
        (("B1", "B2", "B3"), True, None),  # may be numbers
        (("a:1", "b:1"), True, None),  # names of files
        (("B2",), True, None),
        (("1", "2"), False, None),
        (("B2", "2"), False, None),
        (("B02", "B2"), False, None),
        (("a:red", "b:red"), False, None),
    ],
)
def test_names_tell_bands_apart_and_some_tell_which_they_are(bands, named, parts):
    assert are_named(bands) == named
    assert distinct_parts(bands) == parts
