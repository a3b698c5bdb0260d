"""Pixels that a quality band marks are not valid, wherever the band is."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from synthetic import write_raster

from segkit.errors import GridError, MissingFileError, RasterError
from segkit.io.quality_mask import MASK_PRESETS, MaskRule, QualityMask
from segkit.io.scene import Scene

RANDOM = np.random.default_rng(1)
SHAPE = (12, 16)


def named(path, *names):
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = names
    return path


@pytest.fixture
def classes():
    return RANDOM.integers(0, 12, SHAPE).astype(np.uint16)


@pytest.fixture
def image(tmp_path):
    return write_raster(tmp_path / "T33_B04_10m.tif", RANDOM.integers(1, 99, (2, *SHAPE)).astype(np.uint16))


@pytest.mark.parametrize(
    ("preset", "valid", "not_valid"),
    [
        ("sentinel2_scl", (2, 4, 5, 6, 7, 11), (0, 1, 3, 8, 9, 10)),
        # Values of the product guide: clear, water, snow; fill, dilated cloud, cirrus, cloud, shadow.
        ("landsat_qa_pixel", (21824, 21952, 30048), (1, 21826, 54596, 22280, 23888, 55052)),
        ("planet_udm2", (1,), (0,)),
        ("fmask", (0, 1, 3), (2, 4, 255)),
    ],
)
def test_presets_know_the_codes_of_their_products(preset, valid, not_valid):
    rule = MASK_PRESETS[preset]
    assert not rule.is_masked(np.array(valid, dtype=np.uint16)).any()
    assert rule.is_masked(np.array(not_valid, dtype=np.uint16)).all()
    if not rule.bits:
        np.testing.assert_array_equal(rule.is_masked(np.array([*valid, np.nan])), [False] * len(valid) + [True])


def test_a_band_of_the_scene_masks_it_and_is_not_imagery(tmp_path, image, classes):
    with rasterio.open(image) as dataset:
        pixels = dataset.read()
    path = named(write_raster(tmp_path / "with.tif", np.concatenate([pixels, classes[None]])), "B3", "B4", "scl")
    by_name = Scene.from_files(path, mask=QualityMask(MASK_PRESETS["sentinel2_scl"]))
    by_number = Scene.from_files(path, mask=QualityMask(MaskRule(values=(0, 1, 3, 8, 9, 10)), bands=(3,)))
    for scene in (by_name, by_number):
        assert scene.bands == (1, 2)
        tile = scene.read()
        np.testing.assert_array_equal(tile.valid, ~np.isin(classes, (0, 1, 3, 8, 9, 10)))
        np.testing.assert_array_equal(tile.pixels, pixels)
    assert Scene.from_files(path, bands=(1, 3), mask=QualityMask(MASK_PRESETS["sentinel2_scl"])).bands == (1, 3)


def test_a_band_without_a_name_is_named_by_the_recipe(tmp_path, classes):
    path = write_raster(tmp_path / "a.tif", np.stack([classes, classes]))
    scene = Scene.from_files(path, band_names=("SCL", "red"), mask=QualityMask(MASK_PRESETS["sentinel2_scl"]))
    assert scene.band_names == ("red",)


def test_bits_are_any_of_those_that_are_set(tmp_path, image, classes):
    write_raster(tmp_path / "qa.tif", classes)
    tile = Scene.from_files(image, mask=QualityMask(MaskRule(bits=(0, 3)), file="qa.tif")).read()
    np.testing.assert_array_equal(tile.valid, [[not value & 0b1001 for value in row] for row in classes.tolist()])


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("masks/T33_B04_10m_cloud.tif", {"file": "masks/{name}_cloud.tif"}),
        ("T33_SCL_20m.tif", {"replace": (("_B04_", "_SCL_"), ("10m", "20m"))}),
    ],
)
def test_a_file_beside_the_image_is_found_by_its_name(tmp_path, image, classes, place, where):
    write_raster(tmp_path / place, np.stack([classes, classes * 0]))
    scene = Scene.from_files(image, mask=QualityMask(MASK_PRESETS["sentinel2_scl"], **where))
    np.testing.assert_array_equal(scene.read().valid, ~np.isin(classes, (0, 1, 3, 8, 9, 10)))
    second = Scene.from_files(image, mask=QualityMask(MaskRule(values=(5,)), bands=(2,), **where))
    assert second.read().valid.all()
    (tmp_path / place).unlink()
    with pytest.raises(MissingFileError, match=r"no such file; it is the quality mask of .*T33_B04_10m\.tif"):
        Scene.from_files(image, mask=QualityMask(MASK_PRESETS["sentinel2_scl"], **where))


def test_a_coarser_mask_counts_by_the_nearest_pixel_and_outside_of_it_nothing_is_valid(tmp_path, image):
    """The mask has pixels of 20 m for an image of 10 m, declares its clear code as no data, and ends earlier."""
    coarse = RANDOM.integers(0, 2, (6, 6)).astype(np.uint8)
    transform = Affine(20, 0, 500_000, 0, -20, 9_000_000)
    with rasterio.open(
        tmp_path / "scl.tif", "w", driver="GTiff", height=6, width=6, count=1, dtype="uint8", nodata=0,
        crs=CRS.from_epsg(32622), transform=transform,
    ) as dataset:  # fmt: skip
        dataset.write(coarse, 1)
    tile = Scene.from_files(image, mask=QualityMask(MaskRule(values=(1,)), file="scl.tif")).read()
    expected = np.zeros(SHAPE, dtype=bool)
    expected[:, :12] = np.kron(coarse, np.ones((2, 2))) == 0
    np.testing.assert_array_equal(tile.valid, expected)


def test_bands_of_several_dates_are_all_used(tmp_path):
    files = []
    for date in range(2):
        quality = np.zeros((4, 5), dtype=np.uint8)
        quality[date] = 9
        pixels = np.stack([np.full((4, 5), 7, dtype=np.uint8), quality])
        files.append(named(write_raster(tmp_path / f"{date}.tif", pixels), "B4", "SCL"))
    rule = MaskRule(values=(9,), name="SCL")
    scene = Scene.from_files(files, mask=QualityMask(rule))
    assert scene.bands == (1, 3)
    assert scene.read().valid.all(axis=1).tolist() == [False, False, True, True]


@pytest.fixture
def dates(tmp_path, classes):
    """Two dates, each with a mask beside it; the clouds of the second one are others."""
    files = []
    for date, quality in (("20210401", classes), ("20210812", classes[::-1])):
        pixels = RANDOM.integers(1, 99, (1, *SHAPE)).astype(np.uint16)
        files.append(write_raster(tmp_path / f"a_{date}_SR.tif", pixels))
        write_raster(tmp_path / f"a_{date}_udm2.tif", quality)
    return files


@pytest.mark.parametrize("where", [{"replace": (("_SR", "_udm2"),)}, {"file": "{name}_mask.tif"}])
def test_each_date_has_its_own_mask_and_a_cloud_of_one_date_hides_the_pixel(tmp_path, dates, classes, where):
    for path in dates if "file" in where else ():
        path.with_name(path.name.replace("_SR", "_udm2")).rename(tmp_path / f"{path.stem}_mask.tif")
    rule = MaskRule(values=(3, 4))
    clear = ~np.isin(classes, rule.values)
    np.testing.assert_array_equal(
        Scene.from_files(dates, mask=QualityMask(rule, **where)).read().valid, clear & clear[::-1]
    )
    first = QualityMask(rule, **where, per_file=False)
    np.testing.assert_array_equal(Scene.from_files(dates, mask=first).read().valid, clear)
    one = QualityMask(rule, file=first.paths(dates)[0].name)
    np.testing.assert_array_equal(Scene.from_files(dates, mask=one).read().valid, clear)
    second = QualityMask(rule, **where).paths(dates)[1]
    second.unlink()
    with pytest.raises(MissingFileError, match=f"{second.name}: no such file.*20210812.*set data.mask.per: scene"):
        Scene.from_files(dates, mask=QualityMask(rule, **where))
    assert Scene.from_files(dates, mask=first).read().valid.any()


def test_a_mask_of_two_dates_by_mistake_is_refused(tmp_path, classes):
    """The names of the images differ only by their folders, which {name} does not tell apart."""
    files = [write_raster(tmp_path / date / "a.tif", classes) for date in ("20210401", "20210812")]
    write_raster(tmp_path / "masks" / "a.tif", classes)
    mask = QualityMask(MaskRule(values=(3,)), file="../masks/{name}.tif")
    with pytest.raises(RasterError, match=r"masks/a\.tif: is the quality mask of .*20210401.* and of .*20210812"):
        Scene.from_files(files, mask=mask)


def test_what_cannot_be_read_as_a_mask_is_refused(tmp_path, image, classes):
    write_raster(tmp_path / "float.tif", classes.astype(np.float32))
    write_raster(tmp_path / "elsewhere.tif", classes, crs=None, left=0)
    for mask, error, words in [
        (
            QualityMask(MASK_PRESETS["sentinel2_scl"]),
            RasterError,
            "has no quality band SCL; its bands are 1, 2; set data",
        ),
        (QualityMask(MaskRule(bits=(1,)), file="float.tif"), RasterError, "holds float32, but data.mask reads bits"),
        (QualityMask(MaskRule((1,)), (4,), "float.tif"), RasterError, "has no quality band 4"),
        (QualityMask(MaskRule((1,)), replace=(("B02", "SCL"),)), RasterError, "its name does not contain 'B02'"),
        (QualityMask(MaskRule((1,)), file="elsewhere.tif"), GridError, "one of them has no CRS"),
    ]:
        with pytest.raises(error, match=words):
            Scene.from_files(image, mask=mask).read()
