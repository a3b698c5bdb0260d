"""The sample landscape: reproducible, labelled truthfully, and too hard for a classifier of single pixels."""

from dataclasses import astuple, fields

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from segkit.demo.landscape.canvas import LandCover
from segkit.demo.landscape.files import OVERLAPPING, UNLABELLED, SceneFiles
from segkit.demo.landscape.scene import Landscape, make_landscape
from segkit.demo.landscape.spectra import BANDS
from segkit.errors import UsageError

WIDTH, HEIGHT, GAP = 640, 448, 64


@pytest.fixture(scope="module")
def landscape(tmp_path_factory):
    return make_landscape(tmp_path_factory.mktemp("landscape"), width=WIDTH, height=HEIGHT)


@pytest.fixture(params=["train", "heldout"])
def part(landscape, request):
    return getattr(landscape, request.param)


def read(path):
    with rasterio.open(path) as raster:
        return raster.read()


def rasters(part):
    return [path for path in astuple(part) if path.suffix == ".tif"]


def test_same_seed_same_pixels_and_another_seed_another_landscape(tmp_path):
    size = {"width": 256, "height": 256}
    once, again = (make_landscape(tmp_path / name, **size) for name in ("once", "again"))
    other = make_landscape(tmp_path / "other", **size, seed=1)
    for one, two in zip(rasters(once.heldout), rasters(again.heldout), strict=True):
        np.testing.assert_array_equal(read(one), read(two))
    assert gpd.read_file(once.train.overlapping).equals(gpd.read_file(again.train.overlapping))
    assert (read(once.train.scene_2019) != read(other.train.scene_2019)).mean() > 0.9


def test_five_files_in_each_part_and_nothing_else(landscape, part):
    assert [field.name for field in fields(Landscape)] == ["train", "heldout"]
    assert sorted(part.landcover.parent.iterdir()) == sorted(astuple(part))
    assert [path.stem for path in astuple(part)] == [field.name for field in fields(SceneFiles)]


def test_rasters_of_a_part_share_a_grid_and_say_what_they_hold(part):
    grids = set()
    for path in rasters(part):
        with rasterio.open(path) as raster:
            grids.add((raster.shape, raster.transform, raster.crs.to_epsg()))
            assert "synthetic" in raster.tags()["TIFFTAG_IMAGEDESCRIPTION"]
            assert raster.profile["tiled"]
            assert raster.compression.value == "DEFLATE"
    assert len(grids) == 1
    with rasterio.open(part.scene_2024) as scene:
        assert (scene.descriptions, set(scene.dtypes), scene.nodata) == (BANDS, {"uint16"}, 0)


def test_parts_lie_on_one_lattice_with_a_gap_between_them(landscape):
    with rasterio.open(landscape.train.landcover) as west, rasterio.open(landscape.heldout.landcover) as east:
        assert west.bounds.right + GAP * west.res[0] == east.bounds.left
        assert west.width + GAP + east.width == WIDTH
        assert west.bounds.top == east.bounds.top
        assert west.height == east.height == HEIGHT


def test_every_class_is_in_both_parts(part):
    codes, counts = np.unique(read(part.landcover), return_counts=True)
    assert codes.tolist() == [*LandCover, UNLABELLED]
    assert counts.min() > 0.003 * counts.sum()
    assert 0.02 < (read(part.deforestation) == 1).mean() < 0.25
    assert set(np.unique(read(part.deforestation))) == {0, 1, UNLABELLED}
    assert set(gpd.read_file(part.overlapping)["class"]) == set(OVERLAPPING)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_smallest_landscape_holds_every_class_too(tmp_path, seed):
    made = make_landscape(tmp_path, width=256, height=256, seed=seed)
    for part in (made.train, made.heldout):
        assert set(LandCover) <= set(np.unique(read(part.landcover)))
        assert (read(part.deforestation) == 1).any()


def test_a_landscape_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(UsageError, match="255 x 300"):
        make_landscape(tmp_path, width=255, height=300)


def test_nodata_is_one_corner_and_unlabelled(part):
    missing = [read(path) == 0 for path in (part.scene_2019, part.scene_2024)]
    for date in missing:
        assert (date.any(axis=0) == date.all(axis=0)).all(), "a pixel has all bands or none"
        assert 0.01 < date.mean() < 0.15
        assert date[0, [0, 0, -1, -1], [0, -1, 0, -1]].sum() == 1, "one corner of the part"
    unseen = missing[0][0] | missing[1][0]
    for labels in (read(part.deforestation)[0], read(part.landcover)[0]):
        assert (labels[unseen] == UNLABELLED).all()
        assert (labels[~unseen] == UNLABELLED).any(), "some places were seen and not labelled"


def test_polygons_are_valid_and_classes_overlap(part):
    layer = gpd.read_file(part.overlapping)
    with rasterio.open(part.landcover) as raster:
        assert layer.crs == raster.crs
        left, bottom, right, top = raster.bounds
    assert layer.is_valid.all()
    assert set(layer.geom_type) == {"Polygon"}
    x0, y0, x1, y1 = layer.total_bounds
    assert (left <= x0, bottom <= y0, x1 <= right, y1 <= top) == (True,) * 4
    whole = {name: layer[layer["class"] == name].union_all() for name in OVERLAPPING}
    for name, outline in whole.items():
        assert outline.area == pytest.approx(layer[layer["class"] == name].area.sum()), "no overlap within a class"
    for other in ("built_up", "flooded"):
        assert whole["tree_canopy"].intersection(whole[other]).area > 0.02 * whole[other].area


def test_deforested_land_looked_like_forest_before_and_is_no_forest_after(part):
    cleared, cover = read(part.deforestation)[0] == 1, read(part.landcover)[0]
    assert set(np.unique(cover[cleared])) == {LandCover.AGRICULTURE}
    forest = cover == LandCover.FOREST
    nir_before, nir_after = (read(path)[BANDS.index("nir")] for path in (part.scene_2019, part.scene_2024))
    assert np.median(nir_before[cleared]) == pytest.approx(np.median(nir_before[forest]), rel=0.05)
    assert np.median(nir_after[cleared]) < 0.9 * np.median(nir_after[forest])


def test_deforestation_cannot_be_classified_by_single_pixels(landscape):
    def pixels(part):
        dates = np.concatenate([read(part.scene_2019), read(part.scene_2024)])
        labels = read(part.deforestation)[0]
        known = labels != UNLABELLED
        return dates[:, known].T.astype(float), labels[known]

    bands, labels = pixels(landscape.train)
    classifier = LinearDiscriminantAnalysis().fit(bands, labels)
    bands, labels = pixels(landscape.heldout)
    found = classifier.predict(bands)
    iou = np.sum((found == 1) & (labels == 1)) / np.sum((found == 1) | (labels == 1))
    assert 0.3 < iou < 0.75, "a signal, but not a solution"
