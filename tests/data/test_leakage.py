import json
from pathlib import Path

import numpy as np
import pyproj
import pytest
from affine import Affine
from pyproj import Geod
from rasterio.crs import CRS
from rasterio.windows import Window
from synthetic import segmenter

from segkit.data.area import LabelledArea
from segkit.data.leakage import describe_training_labels, find_nearest_pairs, recipes_of_map
from segkit.data.pairing import Sample
from segkit.io.cover import PixelRegion
from segkit.io.grid import Grid
from segkit.io.scene import Scene
from segkit.recipe.schema import Recipe

UTM = CRS.from_epsg(32622)


def area(name, left=0, top=0, *, size=40, crs=UTM, pixel=10.0, windows=None, exclude=(), transform=None):
    """A square scene that lies so many of its pixels to the right and below; nothing is read of it."""
    grid = Grid(size, size, transform or Affine(pixel, 0, 600_000 + left * pixel, 0, -pixel, 9e6 - top * pixel), crs)
    scene = Scene(name, (Path(name),), grid, (1,), ("b",), resample=False)
    return LabelledArea(Sample(scene, None), windows or (grid.full_window,), PixelRegion(tuple(exclude)))


@pytest.mark.parametrize("left", [-39, -13, 0, 25])
def test_shared_pixels_are_counted(left):
    (one,) = find_nearest_pairs([area("a")], [area("b", left, 10)], 16)
    assert (one.training, one.validation, one.pixels, one.metres) == ("a", "b", 0, 0)
    assert one.shared == (40 - abs(left)) * 30


def test_excluded_pixels_are_not_shared():
    (one,) = find_nearest_pairs(
        [area("a", exclude=[Window(0, 0, 40, 30)])], [area("b", windows=(Window(0, 0, 10, 40),))], 16
    )
    assert one.shared == 10 * 10


def test_blocks_of_one_scene_are_as_far_apart_as_their_gap():
    held = Window(0, 0, 12, 40)
    for gap in (0, 5):
        exclude = PixelRegion((held,)).buffered(gap).windows
        (one,) = find_nearest_pairs(
            [area("a", windows=(Window(12, 0, 28, 40),), exclude=exclude)], [area("a", windows=(held,))], 16
        )
        assert (one.shared, one.pixels) == (0, gap)


@pytest.mark.parametrize(("left", "top", "pixels"), [(40, 0, 0), (47, 0, 7), (43, 44, 5), (400, 0, 360)])
def test_the_distance_is_that_of_the_nearest_edges(left, top, pixels):
    """Oracle of the metres: a geodesic between the corners."""
    (one,) = find_nearest_pairs([area("a")], [area("b", left, top)], 16)
    assert one.shared == 0
    assert one.pixels == pytest.approx(pixels)
    assert one.metres == pytest.approx(10 * pixels, rel=0.01)


def test_metres_on_a_grid_of_degrees():
    degrees = [
        area(name, crs=CRS.from_epsg(4326), transform=Affine(0.001, 0, left, 0, -0.001, 60.02), size=40)
        for name, left in (("a", 10.0), ("b", 10.05))
    ]
    (one,) = find_nearest_pairs(degrees[:1], degrees[1:], 5)
    assert one.pixels == pytest.approx(10)
    nearest_parallel = Geod(ellps="WGS84").inv(10.04, 60.02, 10.05, 60.02)[2]
    farthest = Geod(ellps="WGS84").inv(10.04, 59.98, 10.05, 59.98)[2]
    assert nearest_parallel * 0.999 <= one.metres <= farthest * 1.001


def test_pairs_within_the_distance_are_sorted_by_shared_pixels():
    training = [area("a"), area("b", 100), area("c", 300)]
    validation = [area("d", 30), area("e", 105), area("f", 345)]
    found = find_nearest_pairs(training, validation, 8)
    assert [(one.training, one.validation) for one in found] == [("b", "e"), ("a", "d"), ("c", "f")]
    assert [one.shared for one in found] == [35 * 40, 10 * 40, 0]
    (far,) = find_nearest_pairs(training[2:], validation[:1], 8)
    assert far.pixels == 300 - 70


def test_other_crs_on_the_same_ground():
    x, y = pyproj.Transformer.from_crs(32622, 32623, always_xy=True).transform(600_000, 1_000_000)
    one = area("a", transform=Affine(10, 0, 600_000, 0, -10, 1_000_000))
    two = area("b", crs=CRS.from_epsg(32623), transform=Affine(10, 0, x, 0, -10, y))
    (found,) = find_nearest_pairs([one], [two], 5)
    assert 0.7 * 1600 < found.shared < 1600


def test_scenes_without_location_are_compared_only_with_themselves():
    homeless = {"crs": None, "transform": Affine.identity()}
    assert find_nearest_pairs([area("a", **homeless)], [area("b", **homeless)], 5) == []
    (one,) = find_nearest_pairs([area("a", **homeless)], [area("a", **homeless)], 5)
    assert (one.shared, one.metres) == (1600, None)


def test_masks_agree_with_the_count_on_shifted_grids():
    """Half a pixel aside, a centre lies on one side or the other."""
    random = np.random.default_rng(0)
    for _ in range(20):
        left, top = random.uniform(-45, 45, 2)
        found = find_nearest_pairs([area("a")], [area("b", left, top)], 3)
        columns, rows = np.meshgrid(np.arange(40) + 0.5, np.arange(40) + 0.5)
        inside = (columns > left) & (columns < left + 40) & (rows > top) & (rows < top + 40)
        assert found[0].shared == inside.sum()


def test_labels_that_trained_a_model_are_recognised_by_their_files(tmp_path):
    for folder in ("images", "labels", "others"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.tif").touch()
    (tmp_path / "link.tif").symlink_to(tmp_path / "labels" / "a.tif")
    raw = {
        "name": "trial",
        "task": {"type": "binary", "classes": [{"name": "cleared", "value": 1}]},
        "data": {"train": {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels")}},
    }
    recipe = Recipe.from_dict(raw)
    assert describe_training_labels(recipe, [tmp_path / "others" / "a.tif"]) is None
    for file in (tmp_path / "labels" / "a.tif", tmp_path / "link.tif"):
        assert "these labels also trained the model" in describe_training_labels(
            recipe, [tmp_path / "others/a.tif", file]
        )
    (tmp_path / "images" / "a.tif").unlink()  # the training data are gone
    assert describe_training_labels(recipe, [tmp_path / "labels" / "a.tif"]) is None


def test_the_models_of_a_map_are_found_if_they_are_unchanged(tmp_path):
    model = segmenter(tmp_path)
    path = tmp_path / "model.safetensors"
    model.save(path)
    (tmp_path / "broken.safetensors").write_bytes(b"no model")
    files = json.dumps([str(tmp_path / name) for name in ("gone.safetensors", "broken.safetensors", path.name)])
    tags = {"segkit_model": f"model.safetensors {model.fingerprint()}", "segkit_model_files": files}
    assert [one.name for one in recipes_of_map(tags)] == [model.recipe.name]
    assert recipes_of_map(tags | {"segkit_model": "model.safetensors 0123"}) == []  # trained anew since then
    assert recipes_of_map(tags | {"segkit_model_files": json.dumps([f"/{path}"])}) == []  # may be another machine
    assert recipes_of_map({"segkit_model_files": "[not JSON"}) == []
    assert recipes_of_map({}) == []
