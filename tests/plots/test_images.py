import geopandas
import numpy as np
import pytest
import shapely
from matplotlib.image import imread
from rasterio.windows import Window

from segkit.io.scene import Scene
from segkit.plots.images import BandRendering, colorize, plot_panels, read_map, rgb_composite
from segkit.task import IGNORE, LandCoverClass, Task

GREY = [0.62] * 3
MULTICLASS = Task("multiclass", (LandCoverClass("water", 3, "#0000ff"), LandCoverClass("forest", 9, "#00ff00")))
MULTILABEL = Task("multilabel", (LandCoverClass("water", 1, "#0000ff"), LandCoverClass("forest", 2, "#ff0000")))


def test_a_composite_is_stretched_per_band(write_raster):
    ramp = np.tile(np.linspace(100, 1100, 50), (40, 1))
    pixels = np.stack([ramp, 2 * ramp + 5000, ramp[:, ::-1], np.full_like(ramp, 7)]).astype(np.float32)
    image = rgb_composite(Scene.from_files(write_raster("s.tif", pixels)), (2, 3, 4))
    assert image.shape == (40, 50, 3)
    assert ((image >= 0) & (image <= 1)).all()
    assert (np.diff(image[0, :, 0]) >= 0).all()
    np.testing.assert_allclose(image[:, ::-1, 1], image[:, :, 0], atol=1e-5)
    assert (image[:, -1, 0] == 1).all()
    assert (image[:, 0, 0] == 0).all()
    assert len(np.unique(image[..., 2])) == 1  # a constant band has no contrast to show


def test_nodata_in_one_or_all_bands_is_grey(write_raster):
    pixels = np.random.default_rng(0).uniform(1, 9, (3, 20, 30)).astype(np.float32)
    pixels[:, :5] = -1
    pixels[1, :, :4] = -1
    image = rgb_composite(Scene.from_files(write_raster("s.tif", pixels, nodata=-1)), (1, 2, 3), Window(2, 3, 20, 10))
    np.testing.assert_array_equal(image[:2], np.broadcast_to(GREY, (2, 20, 3)))
    np.testing.assert_array_equal(image[:, :2], np.broadcast_to(GREY, (10, 2, 3)))
    assert np.isfinite(image).all()
    assert image[2:, 2:].std() > 0.1


def test_a_scene_without_a_valid_pixel_is_grey(write_raster):
    image = rgb_composite(Scene.from_files(write_raster("s.tif", np.zeros((3, 4, 4), np.uint16), nodata=0)), (1, 2, 3))
    np.testing.assert_array_equal(image, np.broadcast_to(GREY, (4, 4, 3)))


def test_classes_have_their_colours_and_overlaps_mix():
    image = colorize(np.array([[[0, 1, 2, IGNORE]]], dtype=np.int16), MULTICLASS)
    np.testing.assert_allclose(image[0, 1:], [[0, 0, 1], [0, 1, 0], GREY])
    assert image[0, 0].min() > 0.9
    targets = np.array([[[0, 1, 1, IGNORE, IGNORE]], [[0, 0, 1, 1, IGNORE]]], dtype=np.int16)
    image = colorize(targets, MULTILABEL)
    np.testing.assert_allclose(image[0, 1:], [[0, 0, 1], [0.5, 0, 0.5], [1, 0, 0], GREY])


@pytest.mark.parametrize("task", [MULTICLASS, MULTILABEL], ids=lambda task: task.type)
def test_a_map_reads_back_as_targets(write_raster, task):
    random = np.random.default_rng(0)
    targets = random.integers(0, len(task.categories), (task.n_targets, 12, 15)).astype(np.int16)
    valid = random.random((12, 15)) > 0.3
    path = write_raster("map.tif", task.map_values(targets, valid), nodata=task.nodata)
    np.testing.assert_array_equal(read_map(path, task), np.where(valid, targets, IGNORE))
    part = read_map(path, task, Window(3, 2, 7, 6))
    np.testing.assert_array_equal(part, np.where(valid, targets, IGNORE)[:, 2:8, 3:10])


def test_panels_stand_side_by_side_with_outlines(tmp_path):
    images = {"one": np.ones((20, 20, 3)), "two": np.ones((20, 20, 3))}
    outlines = geopandas.GeoDataFrame({"class": ["water"]}, geometry=[shapely.box(5, 5, 15, 15)], crs="EPSG:32622")
    plot_panels(tmp_path / "plain.png", images, MULTICLASS, (0, 20, 0, 20))
    plot_panels(tmp_path / "drawn.png", images, MULTICLASS, (0, 20, 0, 20), outlines)
    plain, drawn = imread(tmp_path / "plain.png"), imread(tmp_path / "drawn.png")
    assert plain.shape == drawn.shape
    changed = (plain != drawn).any(axis=2).nonzero()[1]
    assert changed.size > 100
    assert changed.min() > plain.shape[1] / 2  # over the last panel only


def test_the_stretch_is_linear_about_the_mean():
    """Two standard deviations below the mean are black, two above it white, in bands of any scale."""
    steps = np.linspace(-3, 3, 25, dtype=np.float32)
    mean, std = np.array([500, 0.2, -7]), np.array([40, 0.01, 2])
    pixels = (mean[:, None, None] + std[:, None, None] * steps).astype(np.float32)
    image = BandRendering.from_statistics("abc", mean, std).render(pixels, np.ones((1, 25), bool))
    expected = np.clip((steps + 2) / 4, 0, 1)
    np.testing.assert_allclose(image[0], np.stack([expected] * 3, axis=1), atol=2e-4)


def test_nodata_pixels_and_missing_values_of_one_band():
    pixels = np.full((3, 2, 2), 9, dtype=np.float32)
    pixels[1, 0, 0] = np.nan
    valid = np.array([[True, True], [True, False]])
    image = BandRendering.from_statistics("abc", [5, 5, 5], [2, 2, 0]).render(pixels, valid, (1, 0, 1))
    np.testing.assert_array_equal(image[1, 1], (1, 0, 1))
    np.testing.assert_array_equal(image[0, 0], (1, 0.5, 1))  # as the network has it: at the band's mean
    np.testing.assert_array_equal(image[0, 1], (1, 1, 1))


@pytest.mark.parametrize(
    ("names", "bands", "caption"),
    [
        (["pan"], (1, 1, 1), "grey = pan, "),
        (["vv", "vh"], (1, 2, 2), "red, cyan = vv, vh, "),
        (["x", "y", "z"], (1, 2, 3), "red, green, blue = x, y, z, "),
        (["blue", "green", "red", "nir"], (3, 2, 1), "red, green, blue = red, green, blue (of 4), "),
        ([f"{year}:{color}" for year in (2019, 2024) for color in ("Red", "Green", "Blue")], (4, 5, 6), "2024:Red"),
        (list("123456"), (3, 2, 1), "red, green, blue = 3, 2, 1 (of 6), "),
        ([str(band) for band in range(1, 225)], (186, 112, 37), "red, green, blue = 186, 112, 37 (of 224), "),
    ],
)
def test_bands_are_chosen_by_name_or_number(names, bands, caption):
    view = BandRendering.from_statistics(names, [0] * len(names), [1] * len(names))
    assert view.bands == bands
    assert caption in view.caption
    assert "mean ± 2 standard deviations" in view.caption


def test_names_in_any_script_are_drawn_without_a_warning(tmp_path):
    task = Task("binary", (LandCoverClass("\u6c34 \u0baf\U00010330", 1),))
    plot_panels(tmp_path / "p.png", {"\u6c34": np.zeros((4, 4, 3))}, task)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
