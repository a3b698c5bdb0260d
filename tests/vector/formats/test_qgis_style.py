"""The style that QGIS reads."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.io.class_table import MapClass
from segkit.io.qml import is_written_by_segkit
from segkit.vector.formats.qgis_style import qml

FOREST = MapClass("forest", 1, color="#006d2c")
SEA = MapClass('<sea> & "Água" ✓', -7, color="#3182bd")


def parsed(text):
    """{value: (label, fill colour)} as QGIS would find it: category -> symbol -> layer -> option."""
    root = ElementTree.fromstring(text)
    assert root.tag == "qgis"
    renderer = root.find("renderer-v2")
    assert renderer.get("type") == "categorizedSymbol"
    assert renderer.get("attr") == "class_id"
    symbols = {symbol.get("name"): symbol for symbol in renderer.iterfind("symbols/symbol")}
    found = {}
    for category in renderer.iterfind("categories/category"):
        assert category.get("type") == "long"
        assert category.get("render") == "true"
        layer = symbols.pop(category.get("symbol")).find("layer")
        assert layer.get("class") == "SimpleFill"
        options = {option.get("name"): option.get("value") for option in layer.iterfind("Option/Option")}
        assert options == {prop.get("k"): prop.get("v") for prop in layer.iterfind("prop")}
        found[int(category.get("value"))] = category.get("label"), options["color"]
    assert not symbols
    return found


def test_each_class_has_its_colour_and_name():
    text = qml([FOREST, SEA])
    assert text.startswith("<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n")
    assert parsed(text) == {1: ("forest", "0,109,44,255"), -7: (SEA.name, "49,130,189,255")}


def test_a_map_of_nothing_has_a_style():
    assert parsed(qml([])) == {}


def test_classes_without_a_colour_get_different_ones_that_stay():
    many = [MapClass(str(value), value) for value in range(100)]
    colors = {value: color for value, (_, color) in parsed(qml(many)).items()}
    assert len(set(colors.values())) == 100
    assert parsed(qml(many[7:8]))[7][1] == colors[7]


def test_overlapping_polygons_can_be_seen_through():
    alphas = {
        see: [symbol.get("alpha") for symbol in ElementTree.fromstring(qml([FOREST], translucent=see)).iter("symbol")]
        for see in (False, True)
    }
    assert alphas == {False: ["1"], True: ["0.6"]}


@given(st.text())
def test_any_name_makes_valid_xml(name):
    (label, _) = parsed(qml([MapClass(name, 1)]))[1]
    assert len(label) == len(name)
    if name.isprintable():
        assert label == name


@pytest.mark.parametrize(
    ("content", "ours"), [(qml([FOREST]), True), (qml([]).replace("segkit", "QGIS"), False), ("", False), (None, False)]
)
def test_a_style_that_somebody_changed_is_not_ours(tmp_path, content, ours):
    if content is not None:
        (tmp_path / "a.qml").write_text(content, encoding="utf-8")
    assert is_written_by_segkit(tmp_path / "a.qml") == ours
