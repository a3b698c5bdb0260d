from pathlib import Path

import pytest

from segkit.errors import UsageError
from segkit.io.remote import Remote
from segkit.maps.rules import Rule


def test_the_text_of_a_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse = Rule.from_text
    assert parse("new clearing to forest outside a b.tif:forest, wet") == Rule(
        "new clearing", "forest", inside=False, path=Path("a b.tif"), classes=("forest", "wet")
    )
    assert parse("3 to nodata inside c.gpkg") == Rule("3", "nodata", inside=True, path=Path("c.gpkg"))
    Path("odd:name.tif").touch()
    assert parse("a to b inside odd:name.tif").path == Path("odd:name.tif")
    url = parse("a to b inside https://example.com/c.tif")
    assert (isinstance(url.path, Remote), url.classes) == (True, ())
    assert parse("a to b inside https://example.com/c.tif:wet").classes == ("wet",)
    with pytest.raises(UsageError, match=r"rule 'a to b': write it as .clearing to forest outside"):
        parse("a to b")
