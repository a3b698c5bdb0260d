import os

import pytest

from segkit.errors import MissingFileError, OutputError, OutputExistsError, UsageError
from segkit.files import check_output, existing, staged


def test_existing_returns_the_path_or_says_where_it_looked(tmp_path, monkeypatch):
    assert existing(str(tmp_path), "folder") == tmp_path
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=r"^maps/a\.tif: no such raster; .*\(here: ") as caught:
        existing("maps/a.tif", "raster")
    assert str(tmp_path) in str(caught.value)


def test_check_output_refuses_before_the_work(tmp_path, monkeypatch):
    there = tmp_path / "there.tif"
    there.write_text("old")
    with pytest.raises(UsageError, match=r"its folder .*/no does not exist; make it first \(mkdir -p .*/no\)"):
        check_output(tmp_path / "no" / "map.tif", overwrite=True)
    with pytest.raises(UsageError, match="is a folder; name a file in it"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(OutputExistsError, match=r"there\.tif is there already; add --overwrite"):
        check_output(there, overwrite=False)
    assert check_output(str(there), overwrite=True) == there
    assert check_output(tmp_path / "new.tif", overwrite=False) == tmp_path / "new.tif"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="is not writable"):
        check_output(tmp_path / "new.tif", overwrite=False)


def test_staged_files_appear_together_and_nothing_else(tmp_path):
    target = tmp_path / "layer.shp"
    target.write_text("old")
    with staged(target) as part:
        assert part.name == target.name
        assert part.parent.parent == tmp_path  # on the same file system, so that a move is one rename
        part.write_text("new")
        part.with_suffix(".dbf").write_text("table")
        assert target.read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"layer.shp": "new", "layer.dbf": "table"}


def test_the_named_file_moves_last(tmp_path, monkeypatch):
    moved = []
    replace = type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, to: (moved.append(self.name), replace(self, to))[1])
    with staged(tmp_path / "b.shp") as part:
        for name in ("c.dbf", "b.shp", "a.shx"):
            part.with_name(name).write_text("")
    assert len(moved) == 3
    assert moved[-1] == "b.shp"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_raises_changes_nothing(tmp_path, error):
    target = tmp_path / "map.tif"
    target.write_text("old")
    with pytest.raises(error), staged(target) as part:  # noqa: PT012
        part.write_text("half")
        raise error
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(OutputError, match=r"map\.tif was not written"), staged(tmp_path / "map.tif"):
        pass
    with pytest.raises(OutputError, match="was not written"), staged(tmp_path / "map.tif") as part:
        part.with_name("other").write_text("")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_is_an_output_error(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OutputError, match=r"map\.tif could not be finished: .*No space left"),
        staged(tmp_path / "map.tif") as part,
    ):
        part.write_text("all")
    assert not list(tmp_path.iterdir())
