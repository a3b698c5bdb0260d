"""Parts of STAC items: hrefs, classes, times, files."""

import json
import re
from datetime import datetime
from urllib.parse import unquote

import pytest

from segkit.errors import OutputExistsError, UsageError
from segkit.io.remote import as_path
from segkit.io.stac_output import check_item_path, format_time, make_classes, make_href, make_item, write_item


def test_hrefs_lead_from_the_item_to_the_file(tmp_path):
    item = tmp_path / "out" / "maps" / "a.json"
    item.parent.mkdir(parents=True)
    for file in (item.parent / "a b#1.tif", tmp_path / "in" / "ä.tif", tmp_path / "out" / "m.tif"):
        href = make_href(file, item)
        assert not href.startswith("/")
        assert re.fullmatch(r"[\x21-\x7e]+", href)
        assert "#" not in href
        assert (item.parent / unquote(href)).resolve() == file
    url = as_path("https://example.org/a.tif?token=secret")
    assert make_href(url, item) == "https://example.org/a.tif"


def test_classes_have_names_of_their_own_in_the_letters_that_are_allowed():
    names = ["forêt dense", "foret/dense", "森林", "forest", "a-b"]
    found = make_classes([{"name": name, "value": at, "color": "#1b7837"} for at, name in enumerate(names)], {"a-b": 3})
    assert [one["title"] for one in found] == names
    assert [one["name"] for one in found] == ["foret_dense", "foret_dense-1", "-2", "forest", "a-b"]
    assert {one["color_hint"] for one in found} == {"1B7837"}
    assert [one.get("count") for one in found] == [None] * 4 + [3]


def test_times_are_in_utc():
    assert format_time(datetime.fromisoformat("2024-07-01T12:00:00+02:00")) == "2024-07-01T10:00:00Z"
    assert format_time(datetime.fromisoformat("2024-07-01 12:00")) == "2024-07-01T12:00:00Z"


def test_files(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(UsageError, match="name a file that ends in"):
        check_item_path(tmp_path / "a.tif", overwrite=True)
    write_item(make_item(path, {"title": "ä"}, {}, [], ["mlm"]), check_item_path(path, overwrite=False))
    assert json.loads(path.read_text(encoding="utf-8"))["id"] == "a"
    with pytest.raises(OutputExistsError, match="is there already"):
        check_item_path(path, overwrite=False)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_item({"a": float("nan")}, path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]
