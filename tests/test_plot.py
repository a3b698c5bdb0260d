import numpy as np
import pytest
import rasterio
import rioxarray
import torch
from matplotlib.figure import Figure
from predicting import FAST, TASKS, Network, read, write_scene
from rasterio.vrt import WarpedVRT
from synthetic import recipe_for

from segkit import plot
from segkit.errors import DataError, UsageError
from segkit.inference.predict import predict
from segkit.io.class_table import parse_color
from segkit.plot import plot_image, plot_labels, plot_map
from segkit.task import IGNORE, LandCoverClass, Task


def drawn(figure):
    """The picture in the first axes, float (H, W, 4), and the entries of its legend."""
    [ax] = figure.axes
    legend = ax.get_legend()
    return np.asarray(ax.images[0].get_array()), [] if legend is None else [
        one.get_text() for one in legend.get_texts()
    ]


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / "scene.tif", 40, 50)


def test_a_map_has_the_colours_of_its_classes(tmp_path, scene):
    task = TASKS[0]
    predict(Network(task), scene, tmp_path / "map.tif", **FAST)
    values = read(tmp_path / "map.tif")[0]
    picture, entries = drawn(plot_map(tmp_path / "map.tif", title="map"))
    for row in task.legend:
        np.testing.assert_allclose(
            picture[values == row["value"]][:, :3] * 255, [parse_color(row["color"])] * (values == row["value"]).sum()
        )
    np.testing.assert_array_equal(picture[..., 3] == 0, values == task.nodata)
    assert entries == ["background", "water", "forest", "no data"]
    with rasterio.open(scene) as dataset:
        in_memory = predict(Network(task), dataset, **FAST)
    array = predict(Network(task), rioxarray.open_rasterio(scene), **FAST)
    for same in (in_memory, array):
        np.testing.assert_array_equal(drawn(plot_map(same))[0], picture)


def test_overlapping_classes_are_mixed(scene):
    task = Task("multilabel", (LandCoverClass("trees", 5, "#ff0000"), LandCoverClass("water", 6, "#0000ff")))
    with rasterio.open(scene) as dataset:
        found = predict(Network(task), dataset, **FAST)
    picture, entries = drawn(plot_map(found))
    colors = {(0, 0): (0.91,) * 3, (1, 0): (1, 0, 0), (0, 1): (0, 0, 1), (1, 1): (0.5, 0, 0.5)}
    for (trees, water), color in colors.items():
        where = (found.map[0] == trees) & (found.map[1] == water)
        assert where.any()
        np.testing.assert_allclose(picture[where][:, :3], [color] * where.sum())
    assert entries == ["trees", "water", "no data"]


def test_an_image_is_stretched_by_percentiles(tmp_path, scene):
    pixels = read(scene).astype(float)
    valid = (pixels != 0).any(axis=0)
    picture, entries = drawn(plot_image(scene, bands=[2]))
    low, high = np.percentile(pixels[1][valid], [2, 98])
    np.testing.assert_allclose(picture[valid][:, 0], np.clip((pixels[1][valid] - low) / (high - low), 0, 1), atol=1e-6)
    np.testing.assert_array_equal(picture[..., 3] == 1, valid)
    assert entries == ["no data"]
    with rasterio.open(scene, "r+") as dataset:
        dataset.descriptions = ("green", "nir")
    named = drawn(plot_image(scene, bands=["nir", "green", "nir"]))[0]
    np.testing.assert_allclose(named[..., 0], picture[..., 0])
    tensor = torch.from_numpy(pixels)
    of_tensor = drawn(plot_image(tensor, valid=torch.from_numpy(valid), bands=[2]))[0]
    of_array = drawn(plot_image(rioxarray.open_rasterio(scene), bands=["nir"]))[0]
    with rasterio.open(scene) as dataset:
        of_dataset = drawn(plot_image(dataset, bands=["nir"]))[0]
        with WarpedVRT(dataset) as warped:
            np.testing.assert_array_equal(drawn(plot_image(warped, bands=["nir"]))[0], of_dataset)
    for same in (of_tensor, of_array, of_dataset):
        np.testing.assert_allclose(same, picture)
    with pytest.raises(UsageError, match=r"scene\.tif: has no band red; its bands are green, nir"):
        plot_image(scene, bands=["red"])
    with pytest.raises(UsageError, match="2 bands are given; give one, or three"):
        plot_image(scene, bands=[1, 2])


def test_large_rasters_are_reduced(tmp_path, monkeypatch):
    """Oracle: means of cells, and their centres, by numpy; strips of one cell each."""
    monkeypatch.setattr(plot, "_MAX_SIDE_PX", 8)
    monkeypatch.setattr(plot, "_STRIP_PX", 1)
    values = np.random.default_rng(0).integers(1, 3, (24, 32)).astype(np.uint8)
    pixels = np.random.default_rng(1).random((1, 24, 32))
    picture, _ = drawn(plot_image(pixels))
    means = pixels[0].reshape(6, 4, 8, 4).mean(axis=(1, 3))
    low, high = np.percentile(means, [2, 98])
    np.testing.assert_allclose(picture[..., 0], np.clip((means - low) / (high - low), 0, 1), atol=1e-6)
    with rasterio.open(
        tmp_path / "map.tif", "w", driver="GTiff", height=24, width=32, count=1, dtype="uint8", crs="EPSG:4326",
        transform=rasterio.transform.from_origin(0, 1, 0.01, 0.01),
    ) as dataset:  # fmt: skip
        dataset.write(values, 1)
    picture, entries = drawn(plot_map(tmp_path / "map.tif"))
    of_value = {value: picture[values[2::4, 2::4] == value] for value in (1, 2)}
    assert all((colors == colors[0]).all() for colors in of_value.values())
    assert entries == ["1", "2"]


def test_labels(tmp_path, scene):
    recipe = recipe_for(tmp_path, "multiclass")
    codes = np.random.default_rng(0).choice(np.array([0, 3, 9, 99, 255], np.uint8), (20, 30))
    path = tmp_path / "labels.tif"
    with rasterio.open(scene) as dataset:
        profile = dataset.profile | {"height": 20, "width": 30, "count": 1, "dtype": "uint8", "nodata": 255}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(codes, 1)
    picture, entries = drawn(plot_labels(path, recipe, ignore=[99]))
    np.testing.assert_array_equal(picture[..., 3] == 0, codes >= 99)
    assert entries == ["background", "water", "forest", "unlabelled"]
    targets = torch.tensor(np.select([codes == 0, codes == 3, codes == 9], [0, 1, 2], IGNORE)[None].astype(np.int16))
    np.testing.assert_array_equal(drawn(plot_labels(targets, recipe.task))[0], picture)
    with pytest.raises(UsageError, match=r"have the shape \(20, 30\); the targets of this task are \(1, rows"):
        plot_labels(codes, recipe)
    with pytest.raises(UsageError, match="int has no task"):
        plot_labels(targets, 5)
    with pytest.raises(DataError, match="99"):
        plot_labels(path, recipe)


def test_figures_are_matplotlib_s_and_axes_may_be_given(scene):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_image(scene, ax=left, title="image") is figure
    assert plot_image(scene, ax=right, bands=[1]) is figure
    assert left.get_title() == "image"
    own = plot_image(scene)
    assert isinstance(own, Figure)
    assert own._repr_png_().startswith(b"\x89PNG")
