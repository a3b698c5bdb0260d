from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.errors import MissingFileError
from segkit.io.file_search import IMAGE_SUFFIXES, LABEL_SUFFIXES, expand_paths, folder_key
from segkit.io.name_pattern import NamePattern


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(path, suffixes=IMAGE_SUFFIXES, pattern=None):
    return [file.name for file in expand_paths(path, "images", suffixes, pattern and NamePattern(pattern))]


def test_pictures_are_used_where_there_is_nothing_else(tmp_path):
    touch(tmp_path, "a.tif", "a.jpg", "b.JPG", "c.webp", "points.csv")
    assert found(tmp_path) == ["a.tif"]
    assert found(tmp_path / "*.[jJ]*") == ["a.jpg", "b.JPG"]
    assert found(tmp_path, LABEL_SUFFIXES) == ["a.tif"]
    (tmp_path / "a.tif").unlink()
    assert found(tmp_path) == ["a.jpg", "b.JPG", "c.webp"]
    assert found(tmp_path, LABEL_SUFFIXES) == ["points.csv"]
    (tmp_path / "points.csv").unlink()
    with pytest.raises(MissingFileError, match=r"contains only pictures such as a\.jpg, and their compression changes"):
        found(tmp_path, LABEL_SUFFIXES)


def test_a_pattern_selects_files(tmp_path):
    touch(tmp_path, "1_sat.jpg", "1_mask.png", "2_sat.jpg")
    assert found(tmp_path, pattern="{}_sat") == ["1_sat.jpg", "2_sat.jpg"]
    assert found(tmp_path, LABEL_SUFFIXES, "{}_mask") == ["1_mask.png"]
    with pytest.raises(MissingFileError, match=r"no images whose names match the pattern '\{\}_x'; the first of its 3"):
        found(tmp_path, pattern="{}_x")


def test_subfolders_are_hinted_at(tmp_path):
    touch(tmp_path, "d/a/1.tif")
    with pytest.raises(
        MissingFileError, match=r"some are in sub-folders, such as a/1\.tif: use the glob d/\*\*/\*\.tif"
    ):
        found(tmp_path / "d")


@given(parts=st.lists(st.text("ab[", min_size=1, max_size=3), min_size=1, max_size=3))
def test_the_key_of_a_folder_is_what_wildcards_stand_for(parts):
    file = Path("/data", *parts, "images", "1.tif")
    assert folder_key(Path("/data/**/images/*.tif"), file) == "/".join(parts)
    assert folder_key(Path("/data/**/*.tif"), file) == "/".join([*parts, "images"])
    assert folder_key(Path("/data/**"), file) == "/".join([*parts, "images"])
    assert folder_key(file, file) == folder_key(file.parent, file) == ""
    pattern = Path("/data", *["*"] * len(parts), "images", "*.tif")
    assert folder_key(pattern, file) == "/".join(parts)
