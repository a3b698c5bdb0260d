# ruff: noqa: DTZ001 - dates in file names have no time zone
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.data.matching import FileKey, pair_keys, stack_dates
from segkit.errors import DataError
from segkit.recipe.sources import Dates

KEYS = st.lists(st.builds(FileKey, st.sampled_from("abc"), st.sampled_from("xyz")), unique=True, min_size=1, max_size=6)


@given(images=KEYS, labels=KEYS)
def test_keys_are_names_unless_two_are_equal(images, labels):
    by_image, by_label = pair_keys(images, labels)
    unique = all(len({key.name for key in side}) == len(side) for side in (images, labels))
    expected = {
        (one, other)
        for one in images
        for other in labels
        if one.name == other.name and (unique or one.folder == other.folder)
    }
    found = {
        (one, other)
        for one, mine in zip(images, by_image, strict=True)
        for other, theirs in zip(labels, by_label, strict=True)
        if mine == theirs
    }
    assert found == expected


def test_equal_keys_are_refused():
    with pytest.raises(DataError, match="two files have the name 'a'"):
        pair_keys([FileKey("a"), FileKey("a")], [FileKey("a")])


def places(**days):
    """{place: (date, file)} of days of January 2021."""
    return {
        FileKey(name): [(datetime(2021, 1, day), Path(f"{name}{day}")) for day in sorted(of_place)]
        for name, of_place in days.items()
    }


def stacked(found):
    return {key.name: [str(path) for path in files] for key, files in found.items()}


def test_dates_are_stacked_in_order():
    rule = Dates(pattern="{}{date:%d}")
    assert stacked(stack_dates(places(a=[9, 2], b=[1, 30]), rule)) == {"a": ["a2", "a9"], "b": ["b1", "b30"]}
    with pytest.raises(DataError, match=r"1 of 2 places have fewer than 2 dates: b \(2021-01-05\); add images, or set"):
        stack_dates(places(a=[1, 2], b=[5]), rule)
    with pytest.raises(DataError, match=r"1 of 2 places have more than 1 dates: a \(2021-01-01, 2021-01-02\); make"):
        stack_dates(places(a=[1, 2], b=[5]), rule.model_copy(update={"number": 1}))
    skip, repeat = (rule.model_copy(update={"missing": each}) for each in ("skip", "repeat"))
    assert stacked(stack_dates(places(a=[1, 2], b=[5]), skip)) == {"a": ["a1", "a2"]}
    assert stacked(stack_dates(places(a=[1, 2], b=[5]), repeat)) == {"a": ["a1", "a2"], "b": ["b5", "b5"]}
    with pytest.raises(DataError, match="no place has 3 dates"):
        stack_dates(places(a=[1, 2]), skip.model_copy(update={"number": 3}))


def test_a_date_may_have_several_files():
    first, second = datetime(2021, 1, 1), datetime(2021, 2, 1)
    files = [(first, Path("B02")), (first, Path("B03")), (second, Path("B02")), (second, Path("B03"))]
    rule = Dates(pattern="{date:%Y}")
    assert stacked(stack_dates({FileKey("a"): files}, rule)) == {"a": ["B02", "B03", "B02", "B03"]}
    with pytest.raises(DataError, match=r"dates of a have different numbers of files.*2021-01-01: 2, 2021-02-01: 1"):
        stack_dates({FileKey("a"): files[:3]}, rule)
