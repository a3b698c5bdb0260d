"""A cleaned map has the polygons that vectorize makes with the same options."""

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from maps import write_map
from rasterio.features import rasterize
from test_change import with_classes

from segkit import clean, vectorize
from segkit.errors import UsageError

CLASSES = [(1, "forest", "#1b7837"), (2, "water", "#2b83ba"), (7, "road", "#d7301f")]


def patches(seed, shape=(60, 80)):
    random = np.random.default_rng(seed)
    coarse = np.kron(random.choice([1, 2], (6, 8)), np.ones((10, 10), int))
    specks = random.choice([0, 1, 2, 7, 255], shape, p=[0.8, 0.06, 0.06, 0.06, 0.02])
    return np.where(specks, specks, coarse).astype(np.uint8)


@pytest.fixture
def path(tmp_path):
    return with_classes(write_map(tmp_path / "map.tif", patches(0)), CLASSES)


def read(path):
    with rasterio.open(path) as file:
        return file.read()


@pytest.mark.parametrize(
    "options",
    [
        {"min_area": "5px"},
        {"min_area": "0.06ha", "protect": ["road"]},
        {"fill_holes": "7px", "protect": ["7"]},
        {"min_area": "3px", "fill_holes": "12px"},
    ],
)
def test_the_raster_is_that_of_the_polygons(path, tmp_path, options):
    result = clean(path, tmp_path / "clean.tif", **options)
    vectorize(path, tmp_path / "p.gpkg", background=True, **options)
    frame = geopandas.read_file(tmp_path / "p.gpkg", layer="p")
    with rasterio.open(path) as file:
        drawn = rasterize(
            zip(frame.geometry, frame["class_id"], strict=True), file.shape, fill=255, transform=file.transform
        )
    found, before = read(tmp_path / "clean.tif")[0], read(path)[0]
    np.testing.assert_array_equal(found, drawn)
    assert (found != before).any()
    np.testing.assert_array_equal(found == 255, before == 255)
    if "protect" in options:
        assert (found[before == 7] == 7).all()
    else:
        assert (found[before == 7] != 7).any()
    names = {name: value for value, name, _ in CLASSES}
    assert result.pixels_before == {name: int((before == value).sum()) for name, value in names.items()}
    assert result.pixels == {name: int((found == value).sum()) for name, value in names.items()}


def test_the_bands_of_overlapping_classes_are_cleaned_one_by_one(tmp_path):
    bands = np.stack([np.where(patches(seed) == 255, 255, patches(seed) == 1) for seed in (1, 2)]).astype(np.uint8)
    transform = Affine(10, 0, 500_000, 0, -10, 9_000_000)
    with rasterio.open(
        tmp_path / "m.tif", "w", driver="GTiff", count=2, height=60, width=80, dtype="uint8", nodata=255,
        crs="EPSG:32622", transform=transform,
    ) as file:  # fmt: skip
        file.write(bands)
    with_classes(tmp_path / "m.tif", [(1, "trees", "#1b7837"), (2, "wet", "#2b83ba")], kind="multilabel")
    result = clean(tmp_path / "m.tif", tmp_path / "c.tif", min_area="6px")
    found = read(tmp_path / "c.tif")
    for band, codes in enumerate(bands):
        single = write_map(tmp_path / "one.tif", codes)
        clean(single, tmp_path / "alone.tif", min_area="6px", overwrite=True)
        np.testing.assert_array_equal(found[band], read(tmp_path / "alone.tif")[0])
    assert result.pixels == {"trees": (found[0] == 1).sum(), "wet": (found[1] == 1).sum()}


def test_a_map_without_data_stays_one(tmp_path):
    empty = write_map(tmp_path / "map.tif", np.zeros((5, 6), np.uint8), nodata=0)
    cleaned = clean(empty, tmp_path / "cleaned.tif", min_area="4px")
    assert set(read(cleaned.path).ravel()) == {255}


def test_what_cannot_be_is_refused(path, tmp_path):
    with pytest.raises(UsageError, match="nothing to clean"):
        clean(path, tmp_path / "c.tif")
    with pytest.raises(UsageError, match="has no class wood"):
        clean(path, tmp_path / "c.tif", min_area="5px", protect=["wood"])
    with pytest.raises(UsageError, match="has no class 9"):
        clean(path, tmp_path / "c.tif", min_area="5px", protect=[9])
    nowhere = write_map(tmp_path / "nowhere.tif", patches(0), crs=None)
    with pytest.raises(UsageError, match="no CRS to measure areas"):
        clean(nowhere, tmp_path / "c.tif", min_area="1ha")
    clean(nowhere, tmp_path / "c.tif", min_area="5px")
