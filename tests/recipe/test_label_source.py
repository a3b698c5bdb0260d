import pytest
from pydantic import ValidationError

from segkit.errors import UsageError
from segkit.recipe.label_source import LabelSource, label_source_from


def test_options_are_keys_with_yaml_values():
    options = ["radius=20", "values={old: forest, cloud: null}", 'pair="{}_mask"', "crs=EPSG:4326", "values.new=forest"]
    assert label_source_from("p.csv", options) == LabelSource(
        path="p.csv",
        radius=20,
        values={"old": "forest", "cloud": None, "new": "forest"},
        pair="{}_mask",
        crs="EPSG:4326",
    )
    for option, said in (
        ("radus=3", "--set-labels: radus: unknown key; did you mean radius"),
        ("radius=0", "--set-labels: radius: found 0; must be greater than 0"),
        ("radius", "--set-labels radius: write it as key=value, for example radius=20"),
        ("pair={}_mask", r"YAML reads \{\} as a list of keys; quote the text: pair='\"\{\}_mask\"'"),
    ):
        with pytest.raises(UsageError, match=said):
            label_source_from("p.csv", [option])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"x": "a"}, "x needs y"),
        ({"period": ("2021", "2020"), "date_field": "d"}, "period ends"),
        ({"date_field": "d"}, "period needs date_field"),
        ({"period": ("2021-13", "2022"), "date_field": "d"}, "pattern"),
        ({"pair": "mask"}, "it needs {} once"),
        ({"pair": "{}_{date:%Y}"}, "it needs {} once, and no date"),
    ],
)
def test_keys_that_contradict_each_other(keys, said):
    with pytest.raises(ValidationError, match=said):
        LabelSource(path="p", **keys)
