"""Reclassified maps, pixel by pixel."""

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from maps import write_map
from test_change import with_classes

from segkit import reclassify
from segkit.errors import GridError, OutputExistsError, UsageError
from segkit.io.class_table import Legend
from segkit.maps import reclassification as module

CLASSES = [(0, "background", "#e8e8e8"), (1, "forest", "#1b7837"), (2, "water", "#2b83ba"), (5, "clearing", "#d7301f")]


@pytest.fixture(autouse=True)
def small_strips(monkeypatch):
    monkeypatch.setattr(module, "MAX_STRIP_PIXELS", 500)


@pytest.fixture
def codes():
    return np.random.default_rng(0).choice([0, 1, 2, 5, 255], (60, 70)).astype(np.uint8)


@pytest.fixture
def path(tmp_path, codes):
    return with_classes(write_map(tmp_path / "map.tif", codes), CLASSES)


def read(path):
    with rasterio.open(path) as file:
        return file.read(), Legend.from_dataset(file), file.profile, file.tags()


def test_classes_are_merged_renamed_and_recoloured(path, codes, tmp_path):
    result = reclassify(
        path,
        tmp_path / "new.tif",
        merge={"land": ["forest", "5"]},
        rename={"water": "lake"},
        colors={"lake": "#0000ff"},
        values={"lake": 300},
    )
    values, legend, profile, tags = read(tmp_path / "new.tif")
    expected = np.where(codes == 5, 1, codes).astype(np.uint16)
    expected[codes == 2], expected[codes == 255] = 300, 65535
    np.testing.assert_array_equal(values[0], expected)
    assert [(one.name, one.value, one.color) for one in legend.classes] == [
        ("background", 0, "#e8e8e8"), ("land", 1, "#1b7837"), ("lake", 300, "#0000ff"),
    ]  # fmt: skip
    assert (profile["dtype"], profile["nodata"]) == ("uint16", 65535)
    assert tags["segkit_reclassified"] == str(path)
    assert result.pixels == {
        name: int((expected == v).sum()) for name, v in (("background", 0), ("land", 1), ("lake", 300))
    }
    with rasterio.open(path) as before, rasterio.open(tmp_path / "new.tif") as after:
        assert (before.transform, before.crs, before.shape) == (after.transform, after.crs, after.shape)


def test_a_raster_without_a_legend_and_without_a_crs(codes, tmp_path):
    """Classes are called by their values, of any data type."""
    wide = np.where(codes == 5, 40_000, codes.astype(np.int64)).astype(np.int32)
    path = write_map(tmp_path / "plain.tif", wide, crs=None, nodata=255)
    reclassify(
        path, tmp_path / "new.tif", rename={"40000": "clearing"}, values={"clearing": 3}, colors={"1": "#00ff00"}
    )
    values, legend, profile, _ = read(tmp_path / "new.tif")
    with rasterio.open(tmp_path / "new.tif") as file:
        colors = file.colormap(1)
    np.testing.assert_array_equal(values[0], np.where(codes == 5, 3, codes))
    assert {one.name: one.value for one in legend.classes} == {"0": 0, "1": 1, "2": 2, "clearing": 3}
    assert (profile["dtype"], colors[1]) == ("uint8", (0, 255, 0, 255))


def test_rules_look_at_another_map(path, codes, tmp_path):
    """Only new clearing inside the forest of before; where before is unknown, nothing changes."""
    before = np.random.default_rng(1).choice([3, 4, 255], codes.shape).astype(np.uint8)
    with_classes(write_map(tmp_path / "before.tif", before), [(3, "wood", "#1b7837"), (4, "field", "#e6c35c")])
    rule = f"clearing to background outside {tmp_path / 'before.tif'}:wood"
    result = reclassify(path, tmp_path / "new.tif", rules=[rule])
    expected = np.where((codes == 5) & (before == 4), 0, codes)
    np.testing.assert_array_equal(read(tmp_path / "new.tif")[0][0], expected)
    [count] = result.rules
    assert (count.changed, count.unknown) == (
        ((codes == 5) & (before == 4)).sum(),
        ((codes == 5) & (before == 255)).sum(),
    )


def test_rules_come_one_after_the_other_and_may_make_classes_and_no_data(path, codes, tmp_path):
    west = shapely.box(499_990, 8_999_400, 500_305, 9_000_010)
    geopandas.GeoSeries([west], crs="EPSG:32622").to_crs(4326).to_file(tmp_path / "west.gpkg")
    zone = tmp_path / "west.gpkg"
    rules = [
        f"clearing to old clearing inside {zone}",
        f"old clearing to water inside {zone}",
        f"2 to nodata outside {zone}",
    ]
    reclassify(path, tmp_path / "new.tif", rules=rules[:1], values={"old clearing": 8})
    in_west = np.broadcast_to(np.arange(70) < 31, codes.shape)  # centres at 5, 15, ... m
    np.testing.assert_array_equal(read(tmp_path / "new.tif")[0][0], np.where((codes == 5) & in_west, 8, codes))
    reclassify(path, tmp_path / "all.tif", rules=rules, values={"old clearing": 8})
    expected = np.where((codes == 5) & in_west, 2, codes)
    expected[(codes == 2) & ~in_west] = 255
    np.testing.assert_array_equal(read(tmp_path / "all.tif")[0][0], expected)


def test_a_merged_class_of_overlapping_ones_is_where_any_of_them_is(tmp_path):
    bands = np.random.default_rng(2).choice([0, 1, 255], (3, 30, 40)).astype(np.uint8)
    with rasterio.open(
        tmp_path / "m.tif",
        "w",
        driver="GTiff",
        count=3,
        height=30,
        width=40,
        dtype="uint8",
        nodata=255,
        crs="EPSG:32622",
        transform=Affine(10, 0, 500_000, 0, -10, 9_000_000),
    ) as file:
        file.write(bands)
    with_classes(
        tmp_path / "m.tif", [(1, "oak", "#1b7837"), (2, "wet", "#2b83ba"), (3, "pine", "#006400")], kind="multilabel"
    )
    result = reclassify(tmp_path / "m.tif", tmp_path / "n.tif", merge={"trees": ["oak", "pine"]})
    with rasterio.open(tmp_path / "n.tif") as file:
        found, names = file.read(), file.descriptions
    oak, wet, pine = bands
    trees = np.where((oak == 1) | (pine == 1), 1, np.where((oak == 255) | (pine == 255), 255, 0))
    np.testing.assert_array_equal(found, [trees, wet])
    assert names == ("trees", "wet")
    assert result.pixels == {"trees": (trees == 1).sum(), "wet": (wet == 1).sum()}
    with pytest.raises(UsageError, match="its classes overlap, in a band of 0 and 1 each, so values are not possible"):
        reclassify(tmp_path / "m.tif", tmp_path / "o.tif", values={"wet": 4})


def test_what_cannot_be_is_refused_and_leaves_nothing(path, tmp_path, codes):
    write_map(tmp_path / "small.tif", codes[:50])
    with_classes(write_map(tmp_path / "same.tif", codes), CLASSES)
    before = set(tmp_path.iterdir())
    for changes, error, message in (
        ({}, UsageError, "no change is given"),
        ({"merge": {"a": ["wood"]}}, UsageError, "has no class 'wood'"),
        ({"rules": [f"clearing to wood inside {tmp_path / 'same.tif'}"]}, UsageError, "has no class 'wood'"),
        ({"rules": [f"clearing to forest inside {tmp_path / 'small.tif'}"]}, GridError, "lies on another grid"),
        ({"rules": [f"clearing to forest inside {tmp_path / 'same.tif'}:wood"]}, UsageError, "has no class wood"),
        ({"rules": [f"clearing to forest outside {tmp_path / 'same.tif'}:77"]}, UsageError, "has no class 77"),
    ):
        with pytest.raises(error, match=message):
            reclassify(path, tmp_path / "new.tif", **changes)
    with pytest.raises(OutputExistsError):
        reclassify(path, tmp_path / "same.tif", rename={"water": "lake"})
    with pytest.raises(UsageError, match="would overwrite"):
        reclassify(path, path, rename={"water": "lake"}, overwrite=True)
    with pytest.raises(UsageError, match="is no model file"):
        reclassify(path, tmp_path / "new.safetensors", rename={"water": "lake"})
    assert set(tmp_path.iterdir()) == before
