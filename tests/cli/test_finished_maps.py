"""What `segkit clean` and `segkit reclassify` refuse, and what they print of a rule."""

import numpy as np
import pytest
import typer
from maps import NODATA, write_map

from segkit.cli.finished_maps import clean, reclassify


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": ["clearing"]}, "'clearing' is not of the form clearing=cleared"),
        ({"rename": ["=cleared"]}, "'=cleared' is not of the form"),
        ({"color": ["1= "]}, "'1= ' is not of the form forest=#1b7837"),
        ({"rename": ["1=a", "2=b", " 1 = c"]}, "1 is given twice"),
        ({"value": ["1=2.5"]}, "1=2.5 is not a whole number"),
        ({"value": ["1=-2"]}, "1=-2 is not a whole number"),
    ],
)
def test_wrong_pairs_are_refused_before_the_map_is_read(tmp_path, options, message):
    with pytest.raises(typer.BadParameter) as refused:
        reclassify(tmp_path / "none.tif", tmp_path / "new.tif", **options)
    assert message in str(refused.value)


def test_cleaning_needs_an_area(tmp_path):
    with pytest.raises(typer.BadParameter, match="give the smallest area: --min-area or --fill-holes"):
        clean(tmp_path / "none.tif", tmp_path / "new.tif")


def test_a_rule_says_what_it_changed_and_where_it_knew_nothing(tmp_path, capsys):
    random = np.random.default_rng(0)
    codes, before = (random.choice(np.array([1, 2, NODATA], np.uint8), (20, 30)) for _ in range(2))
    map_, other = write_map(tmp_path / "map.tif", codes), write_map(tmp_path / "before.tif", before)
    reclassify(map_, tmp_path / "new.tif", rule=[f"1 to 2 inside {other}:2"], rename=["2=water"])
    changed, unknown = (codes == 1) & (before == 2), (codes == 1) & (before == NODATA)
    said = capsys.readouterr().out.splitlines()
    assert f"1 to 2: {changed.sum():,} pixels; {unknown.sum():,} where {other} has no data stay" in said
    counts = {line.split()[0]: line.split()[-1] for line in said[1:3]}
    assert counts == {"1": f"{((codes == 1) & ~changed).sum():,}", "water": f"{(changed | (codes == 2)).sum():,}"}
    assert said[-1] == str(tmp_path / "new.tif")
