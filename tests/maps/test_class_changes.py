import pytest

from segkit.errors import UsageError
from segkit.io.class_table import MapClass
from segkit.maps.class_changes import ClassChanges

CLASSES = (
    MapClass("background", 0, background=True),
    MapClass("primary", 1, color="#006400"),
    MapClass("water", 2),
    MapClass("secondary", 5, color="#1b7837"),
)


def test_merged_classes_have_the_value_of_the_first_named_unless_their_name_exists():
    found = ClassChanges({"forest": ["secondary", "1"]}, {"water": "lake"}, {"lake": "#2b83ba"}, {"lake": 9}).apply(
        CLASSES, "map.tif"
    )
    assert [(new.one, new.members) for new in found] == [
        (CLASSES[0], (0,)),
        (MapClass("forest", 5, color="#1b7837"), (1, 3)),
        (MapClass("lake", 9, color="#2b83ba"), (2,)),
    ]
    [background, water] = ClassChanges({"background": ["primary", "secondary"]}).apply(CLASSES, "map.tif")
    assert (background.one, background.members) == (CLASSES[0], (0, 1, 3))
    assert water.members == (2,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (ClassChanges({"a": ["wood"]}), r"map.tif has no class 'wood'; it has background \(0\), primary \(1\), water"),
        (ClassChanges({"a": ["water"], "b": ["water"]}), "water cannot become both a and b"),
        (ClassChanges(rename={"water": "primary"}), "two classes would be called primary; merge them"),
        (ClassChanges(rename={"water": " "}), "empty name"),
        (ClassChanges(colors={"lake": "#000000"}), "color of 'lake': the result has no such class; it has background,"),
        (ClassChanges(colors={"water": "blue"}), "color of water: blue is not a colour"),
        (ClassChanges(values={"water": 1}), "primary and water both have value 1"),
        (ClassChanges(values={"water": 70_000}), "water has value 70000; a map holds 0 to 65534"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        changes.apply(CLASSES, "map.tif")


def test_a_map_may_have_no_classes():
    with pytest.raises(UsageError, match=r"map.tif has no class 'wood'; it has no classes"):
        ClassChanges({"a": ["wood"]}).apply([], "map.tif")
