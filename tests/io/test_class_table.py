"""What the classes of a map are called, and which are kept."""

import json

import numpy as np
import pytest
import rasterio

from segkit.errors import DataError, MissingFileError, UsageError
from segkit.io.class_table import Legend, MapClass, format_color, parse_color
from segkit.io.raster import open_raster

BACKGROUND = {"name": "background", "value": 0, "color": "#ffffff", "background": True}
FOREST = {"name": "forest", "value": 1, "color": "#006d2c"}
WATER = {"name": "Água ✓", "value": 2}


@pytest.fixture
def legend_of(tmp_path, write_raster):
    """The legend of a map made so; `aside` is what GDAL keeps beside it."""

    def make(names=None, *, classes=None, multilabel=False, colors=None, aside=None, bands=1, dtype="uint8", envi=None):
        path = write_raster("map.tif", np.zeros((bands, 2, 2), dtype=dtype))
        with rasterio.open(path, "r+") as dataset:
            if classes is not None:
                dataset.update_tags(segkit_classes=json.dumps(classes))
            if multilabel:
                dataset.update_tags(segkit_type="multilabel")
            if envi is not None:
                dataset.update_tags(ns="ENVI", class_names=envi)
            if colors is not None:
                dataset.write_colormap(1, colors)
        if aside is not None:
            text = f'<PAMDataset><PAMRasterBand band="1">{aside}</PAMRasterBand></PAMDataset>'
            path.with_name("map.tif.aux.xml").write_text(text, encoding="utf-8")
        if isinstance(names, str):
            (tmp_path / "names.csv").write_text(names, encoding="utf-8")
            names = tmp_path / "names.csv"
        with open_raster(path) as dataset:
            return Legend.from_dataset(dataset, names)

    return make


CATEGORIES = "<CategoryNames><Category>nothing</Category><Category>wood</Category><Category/></CategoryNames>"
COLUMNS = {
    "value": ("Value", 0, 5),
    "count": ("Count", 0, 1),
    "name": ("Class", 2, 2),
    "text": ("Remark", 2, 0),
    "red": ("Red", 0, 6),
    "green": ("Green", 0, 7),
    "blue": ("Blue", 0, 8),
}


def attributes(columns, *rows):
    fields = "".join(
        f'<FieldDefn index="{i}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for i, (name, kind, usage) in enumerate(COLUMNS[column] for column in columns.split())
    )
    cells = "".join(
        f'<Row index="{i}">' + "".join(f"<F>{cell}</F>" for cell in row) + "</Row>" for i, row in enumerate(rows)
    )
    return f'<GDALRasterAttributeTable tableType="thematic">{fields}{cells}</GDALRasterAttributeTable>'


def test_nobody_names_anything(legend_of):
    legend = legend_of()
    assert legend.classes == ()
    assert legend.class_of(1, 0) == MapClass("0", 0, background=True)
    assert legend.class_of(1, 300) == MapClass("300", 300)


def test_segkit_lists_its_classes(legend_of):
    legend = legend_of(classes=[BACKGROUND, FOREST, WATER])
    assert legend.classes == (
        MapClass("background", 0, background=True, color="#ffffff"),
        MapClass("forest", 1, color="#006d2c"),
        MapClass("Água ✓", 2),
    )
    assert [legend.class_of(1, code) for code in range(3)] == list(legend.classes)
    # What the list lacks is nothing else's background.
    assert legend_of(classes=[FOREST]).class_of(1, 0) == MapClass("0", 0)


def test_the_bands_of_a_multilabel_map_are_its_classes(legend_of):
    legend = legend_of(classes=[FOREST, WATER], multilabel=True, bands=2)
    assert legend.multilabel
    assert [legend.class_of(band, 1).name for band in (1, 2)] == ["forest", "Água ✓"]


@pytest.mark.parametrize(
    ("made", "name", "color"),
    [
        ({"colors": {1: (0, 16, 255, 255)}}, "1", "#0010ff"),
        ({"aside": CATEGORIES}, "wood", None),
        ({"aside": CATEGORIES, "colors": {1: (0, 16, 255, 255)}}, "wood", "#0010ff"),
        ({"envi": "{Unclassified, dense wood, sea}"}, "dense wood", None),
        ({"aside": attributes("count value name", (9, 1, "Floresta é"))}, "Floresta é", None),
        ({"aside": attributes("count name", (9, "a"), (9, "row 1"))}, "row 1", None),
        ({"aside": attributes("value text", (1, "a remark"))}, "a remark", None),
        ({"aside": attributes("value red green blue", (1, 0, 16, 255))}, "1", "#0010ff"),
        ({"aside": attributes("value name", (2, "b")) + CATEGORIES}, "wood", None),
        ({"aside": attributes("value name", (1, "table")) + CATEGORIES}, "table", None),
        ({"aside": attributes("value name", (1, "table")), "names": "value,name\n1,file\n"}, "file", None),
    ],
)
def test_names_and_colours_come_from_the_raster(legend_of, made, name, color):
    legend = legend_of(**made)
    assert legend.class_of(1, 1) == MapClass(name, 1, color=color)
    zero = legend.class_of(1, 0)
    assert zero.background == (zero.name.lower() in ("0", "nothing", "unclassified"))
    assert legend.assumes_background(zero) == (zero.name == "0")
    assert not legend.class_of(1, 77).background
    assert legend.classes == ()


@pytest.mark.parametrize(
    "text",
    [
        "value,name,color\n1,Wood,#00ff00\n0,Sea,\n",
        "\ufeffCode;Class;Colour\r\n1;Wood;#00ff00\r\n\r\n0;Sea;\r\n",
        "remark\tLABEL\tclass_id\tcolor\nx\tWood\t 1 \t#00ff00\n\tSea\t0\n",
        'value,name,color\n1,"Wood",#00ff00\n0,"Sea"\n',
    ],
)
def test_a_file_of_names(legend_of, text):
    legend = legend_of(text)
    assert legend.class_of(1, 1) == MapClass("Wood", 1, color="#00ff00")
    assert legend.class_of(1, 0) == MapClass("Sea", 0)  # who names it does not take it for background
    assert legend.class_of(1, 2) == MapClass("2", 2)


def test_a_file_of_names_sets_the_background(legend_of):
    legend = legend_of("value,name,background\n0,sea,no\n5,rest,Yes\n6,land,\n")
    assert [legend.class_of(1, code).background for code in (0, 5, 6)] == [False, True, False]


def test_a_file_of_names_renames_what_segkit_lists(legend_of):
    legend = legend_of("value,name\n1,Wald\n9,Moor\n", classes=[BACKGROUND, FOREST])
    assert [(one.name, one.color, one.background) for one in legend.classes] == [
        ("background", "#ffffff", True),
        ("Wald", "#006d2c", False),
    ]
    assert legend.class_of(1, 9).name == "Moor"
    names = legend_of("value,name\n2,Wasser\n", classes=[FOREST, WATER], multilabel=True, bands=2)
    assert [one.name for one in names.classes] == ["forest", "Wasser"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line is ''; the first line must name the columns"),
        ("1,forest\n", "its first line is '1,forest'; the first line must name the columns"),
        ("value,color\n", "must name the columns, such as value,name,color"),
        ("value,name\n1,a\nx,b\n", r"line 3: 'x,b' is not a class \(invalid literal"),
        ("value,name\n\n1.5,b\n", r"line 3: '1.5,b' is not a class"),
        ("value,name\n1,a\n1,b\n", r"line 3: '1,b' is not a class \(value 1 occurs twice\)"),
        ("value,name\n1\n", r"line 2: '1' is not a class \('name'\)"),
        ("value,name,color\n1,a,green\n", r"line 2: .* \(green is not a colour such as #1b7837\)"),
        ("value,name,background\n1,a,perhaps\n", r"line 2: .* \('perhaps'\)"),
    ],
)
def test_a_file_that_names_nothing_is_refused(legend_of, text, message):
    with pytest.raises(DataError, match=rf"names\.csv.*{message}"):
        legend_of(text)


def test_a_file_of_names_must_be_there_and_text(legend_of, tmp_path):
    with pytest.raises(MissingFileError, match="no such file of class names"):
        legend_of(tmp_path / "missing.csv")
    (tmp_path / "latin.csv").write_bytes("value,name\n1,Água\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not a text file in UTF-8"):
        legend_of(tmp_path / "latin.csv")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"dtype": "float32"}, "band 1 is float32; a map holds class values"),
        ({"bands": 2}, "has 2 bands; a map has one band"),
        ({"bands": 2, "multilabel": True, "classes": [FOREST]}, "bands: 2, listed classes: 1"),
        ({"classes": [{"value": 1}]}, "tag segkit_classes is not a list"),
        ({"classes": 3}, "tag segkit_classes is not a list"),
        ({"classes": [FOREST | {"color": "green"}]}, "green is not a colour"),
        ({"aside": attributes("text", ("x",)).replace("Remark", "Value")}, "its attribute table cannot be read"),
    ],
)
def test_what_is_no_map_is_refused(legend_of, made, message):
    with pytest.raises(DataError, match=rf"map\.tif.*{message}"):
        legend_of(**made)


def kept(legend, codes, wanted=None, *, background=False):
    selection = legend.select(wanted, background=background)
    found = [code for code in codes if selection.select(1, code)]
    selection.check()
    return found


def test_all_but_background_is_kept(legend_of):
    legend = legend_of(classes=[BACKGROUND, FOREST, WATER])
    assert kept(legend, range(4)) == [1, 2, 3]
    assert kept(legend, range(4), background=True) == [0, 1, 2, 3]
    assert kept(legend, range(4), ["background"]) == [0]


def test_classes_are_chosen_by_name_or_value(legend_of):
    legend = legend_of(classes=[BACKGROUND, FOREST, WATER])
    assert kept(legend, range(4), ["forest", 2]) == [1, 2]
    assert kept(legend, range(4), ["3"], background=True) == [0, 3]
    named = legend_of("value,name\n7,bog\n")
    assert kept(named, [1, 7], ["bog"]) == [7]
    assert kept(named, [1], ["bog"]) == []


def test_a_class_that_cannot_be_there_is_refused_at_once(legend_of):
    legend = legend_of(classes=[BACKGROUND, FOREST])
    with pytest.raises(UsageError, match=r"has no class sea; it has background \(0\), forest \(1\)"):
        legend.select(["sea", "forest"])
    with pytest.raises(UsageError, match="has no class 3"):
        legend_of(classes=[FOREST], multilabel=True).select([3])


def test_a_code_that_does_not_turn_up_is_refused_at_the_end(legend_of):
    legend = legend_of("value,name\n7,bog\n")
    selection = legend.select([3, "-4"])
    assert selection.select(1, 3)
    assert not selection.select(1, 5)
    with pytest.raises(UsageError, match=r"has no class -4; it has bog \(7\), 3, 5"):
        selection.check()
    assert selection.select(1, -4)
    selection.check()


def test_real_maps(shared):
    with open_raster(shared / "label_maps/landcover_map_l3.tif") as dataset:
        assert Legend.from_dataset(dataset).class_of(1, 6) == MapClass("water", 6, color="#0064ff")
    with open_raster(shared / "label_maps/nlcd.tif") as dataset:
        assert Legend.from_dataset(dataset).class_of(1, 1) == MapClass("1", 1, color="#476ba0")


def test_colours_are_parsed_and_written():
    assert parse_color("#0aFf10") == (10, 255, 16)
    assert format_color(*parse_color("#0aff10")) == "#0aff10"
    for text in ("green", "#fff", "#12345g", "112233"):
        with pytest.raises(ValueError, match="is not a colour such as #1b7837"):
            parse_color(text)
