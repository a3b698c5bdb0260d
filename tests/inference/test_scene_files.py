import pytest

from segkit.errors import UsageError
from segkit.inference.scene_files import find_scenes


def test_dates_of_each_place_are_one_scene(tmp_path):
    for name in ("a_20210601", "a_20200815", "b_20190101", "b_20191231", "notes"):
        (tmp_path / f"{name}.tif").touch()
    found = find_scenes([tmp_path], vrt=False, dates="{}_{date:%Y%m%d}")
    assert [[path.stem for path in files] for files in found] == [
        ["a_20200815", "a_20210601"], ["b_20190101", "b_20191231"]
    ]  # fmt: skip
    assert len(find_scenes([tmp_path], vrt=False)) == 5
    with pytest.raises(UsageError, match="cannot be given as stacks"):
        find_scenes([[tmp_path]], vrt=False, dates="{date:%Y%m%d}")
    with pytest.raises(UsageError, match=r"dates: the pattern '.*' has no date"):
        find_scenes([tmp_path], vrt=False, dates="{}")
