"""The files beside a map, read back by GDAL and as XML; `tools/check_qgis.py` opens them in QGIS."""

import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from places import UTM
from rasterio.crs import CRS
from rasterio.transform import Affine

from segkit.io.class_table import OUTPUT_TAG, Legend, MapClass, class_rgb, map_tags
from segkit.io.cog import MapProfile, MapStrip, build_cog, open_strip_writer
from segkit.io.grid import Grid
from segkit.io.qml import is_written_by_segkit
from segkit.io.raster import open_raster, vrt_description
from segkit.vector import vectorize

GRID = Grid(70, 90, UTM, CRS.from_epsg(32622))
ROWS = [
    {"name": "background", "value": 0, "color": "#e8e8e8", "background": True},
    {"name": '<b>"forest"</b> & Água\'s ✓', "value": 7, "color": "#1b7837"},
    {"name": "=1+1", "value": 3},
    {"name": "bell\x07", "value": 254, "color": "#2b83ba"},
]
NAMES = {row["value"]: row["name"].replace("\x07", "\ufffd") for row in ROWS}
COLORS = {row["value"]: class_rgb(MapClass(row["name"], row["value"], color=row.get("color"))) for row in ROWS}
FORM = MapProfile(np.dtype("uint8"), 255, ("class",), map_tags("multiclass", ROWS))


def random_values(codes, bands=1):
    return np.random.default_rng(0).choice(np.array(codes), (bands, *GRID.shape)).astype("uint16")


def write(path, values, form=FORM, grid=GRID):
    with open_strip_writer(path.with_name("strip"), grid, form) as writer:
        writer.write(values, grid.full_window)
    build_cog(path, grid, form, [MapStrip(path.with_name("strip"), 0)], overwrite=True)
    path.with_name("strip").unlink()
    return path


def table_of(path, band=1):
    """{value: (name, red, green, blue, count)} as GDAL has read it."""
    with open_raster(path) as dataset:
        found = vrt_description(dataset).find(f"VRTRasterBand[@band='{band}']")
    rows = [[cell.text for cell in row.iterfind("F")] for row in found.iterfind("GDALRasterAttributeTable/Row")]
    return {int(value): (name, *(int(float(each)) for each in more)) for value, name, *more in rows}


def palette_of(path):
    """{value: (label, colour, alpha)} of a QGIS style."""
    entries = ElementTree.parse(path).iterfind("pipe/rasterrenderer/colorPalette/paletteEntry")
    return {int(one.get("value")): (one.get("label"), one.get("color"), int(one.get("alpha"))) for one in entries}


def hexed(rgb):
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def test_gdal_reads_names_colours_and_counts_of_the_class_table(tmp_path):
    values = random_values([0, 3, 7, 254, 255])
    path = write(tmp_path / "map.tif", values)
    expected = {value: (NAMES[value], *COLORS[value], int((values == value).sum())) for value in NAMES}
    assert table_of(path) == expected
    with rasterio.open(path) as dataset:
        tags = dataset.tags(1)
        names = [each.text or "" for each in vrt_description(dataset).iterfind("VRTRasterBand/CategoryNames/Category")]
    assert names == [NAMES.get(value, "") for value in range(255)]
    data = values[values != 255]
    for key, value in {"MINIMUM": 0, "MAXIMUM": 254, "MEAN": data.mean(), "STDDEV": data.std()}.items():
        assert float(tags[f"STATISTICS_{key}"]) == pytest.approx(value, rel=1e-9)
    assert float(tags["STATISTICS_VALID_PERCENT"]) == pytest.approx(100 * data.size / values.size, rel=1e-3)


def test_another_program_sees_the_classes_without_the_tags_of_segkit(tmp_path):
    path = write(tmp_path / "map.tif", random_values([0, 3, 7, 254]))
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.update_tags(segkit_classes="[]", segkit_type="")
    with open_raster(path) as dataset:
        legend = Legend.from_dataset(dataset)
    assert {value: one.name for value, one in legend.value_table.items()} == NAMES
    assert {value: class_rgb(one) for value, one in legend.value_table.items()} == COLORS


def test_a_map_that_is_moved_without_its_side_files_is_the_same_map(tmp_path):
    path = write(tmp_path / "map.tif", random_values([0, 3, 7, 254]))
    with open_raster(path) as dataset:
        before = Legend.from_dataset(dataset)
    moved = shutil.copy(path, tmp_path / "moved.tif")
    with open_raster(moved) as dataset:
        assert Legend.from_dataset(dataset).classes == before.classes


def test_the_styles_list_the_classes_in_their_order(tmp_path):
    path = write(tmp_path / "map.tif", random_values([0]))
    assert list(palette_of(path.with_suffix(".qml")).items()) == [
        (value, (name, hexed(COLORS[value]), 255)) for value, name in NAMES.items()
    ]
    entries = ElementTree.parse(path.with_suffix(".sld")).iter("{http://www.opengis.net/sld}ColorMapEntry")
    assert {int(one.get("quantity")): (one.get("label"), one.get("color")) for one in entries} == {
        value: (name, hexed(COLORS[value])) for value, name in NAMES.items()
    }


def test_each_band_of_overlapping_classes_has_a_table_and_the_first_is_shown(tmp_path):
    rows = [{"name": name, "value": value, "color": "#1b7837"} for value, name in ((4, "tree"), (9, "crop"))]
    form = MapProfile(np.dtype("uint8"), 255, ("tree", "crop"), map_tags("multilabel", rows))
    values = random_values([0, 1, 255], bands=2)
    path = write(tmp_path / "map.tif", values, form)
    for band, name in enumerate(("tree", "crop")):
        found = table_of(path, band + 1)
        assert {value: (row[0], row[-1]) for value, row in found.items()} == {
            0: (f"not {name}", (values[band] == 0).sum()),
            1: (name, (values[band] == 1).sum()),
        }
    assert palette_of(tmp_path / "map.qml") == {0: ("not tree", "#e8e8e8", 0), 1: ("tree", "#1b7837", 255)}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_numbers_have_statistics_and_the_ramp_of_the_first_class(tmp_path, dtype):
    tags = map_tags("multiclass", ROWS) | {OUTPUT_TAG: "probabilities"}
    is_byte = dtype == "uint8"
    nodata, scale = (255, 1 / 254) if is_byte else (np.nan, 1.0)
    form = MapProfile(np.dtype(dtype), nodata, ("background", "a"), tags, scale=scale, overviews="average")
    values = random_values(range(200), bands=2).astype(dtype)
    values[:, :9] = nodata
    path = write(tmp_path / "p.tif", values, form)
    renderer = ElementTree.parse(tmp_path / "p.qml").find("pipe/rasterrenderer")
    assert (renderer.get("type"), renderer.get("band")) == ("singlebandpseudocolor", "2")
    numbers = values[1, 9:].astype(float)
    top = 1 if is_byte else min(numbers.max(), numbers.mean() + 2 * numbers.std())
    stops = [float(item.get("value")) for item in renderer.iter("item")]
    np.testing.assert_allclose(stops, np.linspace(0, top, 5), rtol=1e-4)
    with rasterio.open(path) as dataset:
        assert float(dataset.tags(2)["STATISTICS_MEAN"]) == pytest.approx(values[1, 9:].mean(dtype="float64"))
        assert float(dataset.tags(2)["STATISTICS_STDDEV"]) == pytest.approx(values[1, 9:].std(dtype="float64"))
    assert table_of(path) == {}
    assert not (tmp_path / "p.sld").exists()


def test_a_map_without_data_has_no_statistics(tmp_path):
    path = write(tmp_path / "map.tif", random_values([255]))
    with rasterio.open(path) as dataset:
        assert not [key for key in dataset.tags(1) if key.startswith("STATISTICS")]
    assert {row[-1] for row in table_of(path).values()} == {0}


def test_a_map_of_many_classes_has_a_table_but_no_list_of_names(tmp_path):
    rows = [{"name": f"class {value}", "value": value} for value in range(0, 60_000, 100)]
    form = MapProfile(np.dtype("uint16"), 65535, ("class",), map_tags("multiclass", rows))
    values = random_values([row["value"] for row in rows])
    path = write(tmp_path / "map.tif", values, form)
    found = table_of(path)
    assert {value: row[0] for value, row in found.items()} == {row["value"]: row["name"] for row in rows}
    assert sum(row[-1] for row in found.values()) == values.size
    assert "CategoryNames" not in Path(f"{path}.aux.xml").read_text()


def test_a_crs_beside_the_map_stays_there(tmp_path):
    crs = CRS.from_string("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18")
    path = write(
        tmp_path / "map.tif", random_values([0, 7]), grid=Grid(*GRID.shape, Affine(0.1, 0, 0, 0, -0.1, 0), crs)
    )
    with rasterio.open(path) as dataset:
        assert dataset.crs == crs
    assert {value: row[0] for value, row in table_of(path).items()} == NAMES


def test_side_files_of_an_older_map_go_and_a_style_of_the_user_stays(tmp_path):
    path = write(tmp_path / "map.tif", random_values([0, 7]))
    numbers = MapProfile(np.dtype("uint8"), 255, ("c",), FORM.tags | {OUTPUT_TAG: "confidence"}, scale=1 / 254)
    write(path, random_values([0, 7]), numbers)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map.qml", "map.tif", "map.tif.aux.xml"]
    assert table_of(path) == {}
    for name in ("map.qml", "map.sld"):
        (tmp_path / name).write_text("<qgis>mine</qgis>")
    write(path, random_values([0, 7]))
    assert table_of(path)
    for name in ("map.qml", "map.sld"):
        assert (tmp_path / name).read_text() == "<qgis>mine</qgis>"


@pytest.mark.parametrize("map_first", [True, False])
def test_one_style_file_serves_a_map_and_polygons_of_the_same_name(tmp_path, map_first):
    """QGIS loads map.qml for map.tif and for map.fgb."""
    path = write(tmp_path / "map.tif", random_values([0, 7]))
    vectorize(path, tmp_path / "map.fgb")
    if not map_first:
        write(path, random_values([0, 7]))
    root = ElementTree.parse(tmp_path / "map.qml").getroot()
    assert [element.tag for element in root if element.tag in ("pipe", "renderer-v2")].count("pipe") == 1
    assert len(root.findall("renderer-v2")) == 1
    assert palette_of(tmp_path / "map.qml").keys() == NAMES.keys()
    assert root.find("renderer-v2/categories/category").get("value") == "7"
    assert is_written_by_segkit(tmp_path / "map.qml")


@pytest.mark.parametrize("content", [b"<qgis><pipe>", b"\xff\xfe", b""])
def test_a_damaged_style_of_segkit_is_replaced(tmp_path, content):
    path = write(tmp_path / "map.tif", random_values([0, 7]))
    style = tmp_path / "map.qml"
    style.write_bytes(style.read_bytes()[:90] + content)
    assert is_written_by_segkit(style)
    write(path, random_values([0, 7]))
    assert palette_of(style).keys() == NAMES.keys()


def test_a_raster_that_does_not_say_what_it_holds_has_no_side_files(tmp_path):
    write(tmp_path / "map.tif", random_values([0]), MapProfile(np.dtype("uint8"), 255, ("class",), {}))
    assert [file.name for file in tmp_path.iterdir()] == ["map.tif"]
