import geopandas
import numpy as np
import pytest
import shapely
from matplotlib.image import imread
from rasterio.windows import Window

from segkit.io.scene import Scene
from segkit.plots.images import View, colored, composite, panels, read_map
from segkit.task.task import IGNORE, LandClass, Task

GREY = [0.62] * 3
MULTICLASS = Task("multiclass", (LandClass("water", 3, "#0000ff"), LandClass("forest", 9, "#00ff00")))
MULTILABEL = Task("multilabel", (LandClass("water", 1, "#0000ff"), LandClass("forest", 2, "#ff0000")))


def test_a_composite_is_stretched_band_by_band(write_raster):
    ramp = np.tile(np.linspace(100, 1100, 50), (40, 1))
    pixels = np.stack([ramp, 2 * ramp + 5000, ramp[:, ::-1], np.full_like(ramp, 7)]).astype(np.float32)
    image = composite(Scene.of(write_raster("s.tif", pixels)), (2, 3, 4))
    assert image.shape == (40, 50, 3)
    assert ((image >= 0) & (image <= 1)).all()
    assert (np.diff(image[0, :, 0]) >= 0).all()
    np.testing.assert_allclose(image[:, ::-1, 1], image[:, :, 0], atol=1e-5)
    assert (image[:, -1, 0] == 1).all()
    assert (image[:, 0, 0] == 0).all()
    assert len(np.unique(image[..., 2])) == 1  # a constant band has no contrast to show


def test_no_data_is_grey_in_all_or_one_of_the_bands(write_raster):
    pixels = np.random.default_rng(0).uniform(1, 9, (3, 20, 30)).astype(np.float32)
    pixels[:, :5] = -1
    pixels[1, :, :4] = -1
    image = composite(Scene.of(write_raster("s.tif", pixels, nodata=-1)), (1, 2, 3), Window(2, 3, 20, 10))
    np.testing.assert_array_equal(image[:2], np.broadcast_to(GREY, (2, 20, 3)))
    np.testing.assert_array_equal(image[:, :2], np.broadcast_to(GREY, (10, 2, 3)))
    assert np.isfinite(image).all()
    assert image[2:, 2:].std() > 0.1


def test_a_scene_without_a_valid_pixel_is_grey(write_raster):
    image = composite(Scene.of(write_raster("s.tif", np.zeros((3, 4, 4), np.uint16), nodata=0)), (1, 2, 3))
    np.testing.assert_array_equal(image, np.broadcast_to(GREY, (4, 4, 3)))


def test_classes_have_their_colours_and_overlaps_mix():
    image = colored(np.array([[[0, 1, 2, IGNORE]]], dtype=np.int16), MULTICLASS)
    np.testing.assert_allclose(image[0, 1:], [[0, 0, 1], [0, 1, 0], GREY])
    assert image[0, 0].min() > 0.9
    planes = np.array([[[0, 1, 1, IGNORE, IGNORE]], [[0, 0, 1, 1, IGNORE]]], dtype=np.int16)
    image = colored(planes, MULTILABEL)
    np.testing.assert_allclose(image[0, 1:], [[0, 0, 1], [0.5, 0, 0.5], [1, 0, 0], GREY])


@pytest.mark.parametrize("task", [MULTICLASS, MULTILABEL], ids=lambda task: task.type)
def test_a_map_reads_back_as_what_was_decided(write_raster, task):
    random = np.random.default_rng(0)
    planes = random.integers(0, len(task.categories), (task.planes, 12, 15)).astype(np.int16)
    valid = random.random((12, 15)) > 0.3
    path = write_raster("map.tif", task.map_values(planes, valid), nodata=task.nodata)
    np.testing.assert_array_equal(read_map(path, task), np.where(valid, planes, IGNORE))
    part = read_map(path, task, Window(3, 2, 7, 6))
    np.testing.assert_array_equal(part, np.where(valid, planes, IGNORE)[:, 2:8, 3:10])


def test_panels_stand_side_by_side_with_outlines(tmp_path):
    images = {"one": np.ones((20, 20, 3)), "two": np.ones((20, 20, 3))}
    outlines = geopandas.GeoDataFrame({"class": ["water"]}, geometry=[shapely.box(5, 5, 15, 15)], crs="EPSG:32622")
    panels(tmp_path / "plain.png", images, MULTICLASS, (0, 20, 0, 20))
    panels(tmp_path / "drawn.png", images, MULTICLASS, (0, 20, 0, 20), outlines)
    plain, drawn = imread(tmp_path / "plain.png"), imread(tmp_path / "drawn.png")
    assert plain.shape == drawn.shape
    changed = (plain != drawn).any(axis=2).nonzero()[1]
    assert changed.size > 100
    assert changed.min() > plain.shape[1] / 2  # over the last panel only


def test_a_view_is_linear_about_the_mean():
    """Two deviations below the mean are black, two above it white; a band of its own scale looks the same."""
    steps = np.linspace(-3, 3, 25, dtype=np.float32)
    mean, std = np.array([500, 0.2, -7]), np.array([40, 0.01, 2])
    pixels = (mean[:, None, None] + std[:, None, None] * steps).astype(np.float32)
    image = View.of("abc", mean, std).image(pixels, np.ones((1, 25), bool))
    expected = np.clip((steps + 2) / 4, 0, 1)
    np.testing.assert_allclose(image[0], np.stack([expected] * 3, axis=1), atol=2e-4)


def test_a_view_shows_what_is_not_seen_and_what_one_band_lacks():
    pixels = np.full((3, 2, 2), 9, dtype=np.float32)
    pixels[1, 0, 0] = np.nan
    valid = np.array([[True, True], [True, False]])
    image = View.of("abc", [5, 5, 5], [2, 2, 0]).image(pixels, valid, (1, 0, 1))
    np.testing.assert_array_equal(image[1, 1], (1, 0, 1))
    np.testing.assert_array_equal(image[0, 0], (1, 0.5, 1))  # as the network has it: at the band's mean
    np.testing.assert_array_equal(image[0, 1], (1, 1, 1))


@pytest.mark.parametrize(
    ("names", "bands", "said"),
    [
        (["pan"], (1, 1, 1), "band pan in grey"),
        (["vv", "vh"], (1, 2, 2), "bands vv, vh in red and cyan"),
        (["x", "y", "z"], (1, 2, 3), "bands x, y, z in red, green and blue"),
        (["blue", "green", "red", "nir"], (3, 2, 1), "bands red, green, blue of 4 in red, green and blue"),
        ([f"{year}:{color}" for year in (2019, 2024) for color in ("Red", "Green", "Blue")], (4, 5, 6), "2024:Red"),
        (list("123456"), (3, 2, 1), "bands 3, 2, 1 of 6 in red, green and blue"),
        ([str(band) for band in range(1, 225)], (186, 112, 37), "bands 186, 112, 37 of 224"),
    ],
)
def test_which_bands_are_shown_follows_from_their_names_or_numbers(names, bands, said):
    view = View.of(names, [0] * len(names), [1] * len(names))
    assert view.bands == bands
    assert said in view.caption
    assert "mean ± 2 standard deviations" in view.caption


def test_names_in_any_script_are_drawn_without_a_warning(tmp_path):
    task = Task("binary", (LandClass("\u6c34 \u0baf\U00010330", 1),))
    panels(tmp_path / "p.png", {"\u6c34": np.zeros((4, 4, 3))}, task)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
