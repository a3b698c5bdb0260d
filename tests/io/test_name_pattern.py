# ruff: noqa: DTZ001 - dates in file names have no time zone
import unicodedata
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.io.name_pattern import NameParts, NamePattern, suggest_patterns

KEY = st.text("abcXYZ019", min_size=1, max_size=6)
DAY = st.datetimes(datetime(1972, 1, 1), datetime(2100, 1, 1)).map(lambda d: datetime(d.year, d.month, d.day))


@given(key=KEY, before=st.sampled_from(["", "img_"]), after=st.sampled_from(["_sat", "_S2Hand", "-[x]"]))
def test_a_pattern_finds_the_place(key, before, after):
    pattern = NamePattern(f"{before}{{}}{after}")
    assert pattern.match(Path(f"/d/{before}{key}{after}.tif")) == NameParts(key)
    assert pattern.match(Path(f"/d/{before}{key}.tif")) is None
    assert not pattern.has_date


@given(key=KEY, day=DAY, form=st.sampled_from(["%Y%m%d", "%Y-%m-%d", "%Y%j", "%d_%b_%Y"]))
def test_a_pattern_finds_the_date(key, day, form):
    text = day.strftime(form)
    whole = NamePattern(f"{{}}_{{date:{form}}}*")
    assert (
        whole.match(Path(f"{key}_{text}.tif")) == whole.match(Path(f"{key}_{text}_cloudy.tif")) == NameParts(key, day)
    )
    alone = NamePattern(f"{{date:{form}}}")
    assert alone.match(Path(f"{key}_{text}.tif")) == NameParts(key, day)
    assert alone.match(Path(f"{text}.tif")) == NameParts("scene", day)
    assert alone.match(Path(f"{key}.tif")) is None


@pytest.mark.parametrize(
    ("pattern", "name", "key", "day"),
    [
        ("S2?_MSIL2A_{date:%Y%m%d}T*_R*_{}_*", "S2A_MSIL2A_20230601T100601_N0509_R022_T33TWM_20230601T140000", "T33TWM",
         datetime(2023, 6, 1)),
        ("*{date:%Y%j}EDC*", "LE70220491999322EDC01_stack", "stack", datetime(1999, 11, 18)),
        ("{}{date:%Y%j}EDC*", "LE70220491999322EDC01_stack", "LE7022049", datetime(1999, 11, 18)),
        ("{date:%Y}/{}", "2019/tile_7", "tile_7", datetime(2019, 1, 1)),
        ("{date:%Y%m%d}", "S2_20211332_20210101", "S2_20211332", datetime(2021, 1, 1)),
        ("{date:%Y%m%d}", "S2_120210101", None, None),
    ],
)  # fmt: skip
def test_names_of_products(pattern, name, key, day):
    found = NamePattern(pattern).match(Path("/data") / f"{name}.tif")
    assert found == (None if key is None else NameParts(key, day))


def test_names_that_look_alike_are_equal():
    decomposed = unicodedata.normalize("NFD", "Köln_sat")
    assert decomposed != "Köln_sat"
    assert NamePattern("{}_sat").match(Path(f"{decomposed}.tif")) == NameParts("Köln")
    assert NamePattern(unicodedata.normalize("NFD", "Köln_{}")).match(Path("Köln_1.tif")) == NameParts("1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}_{}", "two places"),
        ("{date:%Y}{date:%m}", "two dates"),
        ("{name}", "a brace that is neither"),
        ("{date}", "a brace that is neither"),
        ("{date:%Y%q}", "%q is not a part of a date; use %H, %M"),
    ],
)
def test_patterns_that_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        NamePattern(text)


def test_patterns_are_suggested():
    def suggested(images, labels):
        return suggest_patterns(*([Path(f"{name}.x") for name in names.split()] for names in (images, labels)))

    assert suggested("1_sat 2_sat 30_sat", "1_mask 2_mask") == ("{}_sat", "{}_mask")
    assert suggested("G_1_S2Hand G_2_S2Hand", "G_1_LabelHand G_2_LabelHand") == ("G_{}_S2Hand", "G_{}_LabelHand")
    assert suggested("a_1 a_2", "1 2") == ("a_{}", "{}")
    assert suggested("a b", "c d") is None
    assert suggested("a_sat", "a_mask") is None
