"""What check says about too few labels and too few steps."""

import re

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from synthetic import SMALLEST

from segkit.data.amount import default_steps, describe_few_steps, describe_little_left
from segkit.data.check import check
from segkit.recipe.schema import Recipe, Train


def test_the_default_epoch_covers_the_labels_once():
    assert default_steps(8 * 256 * 256 * 5, 256, 8) == 5
    assert default_steps(100, 256, 8) == 1


@pytest.mark.parametrize(
    ("settings", "pixels", "said"),
    [
        ({}, 100, "an epoch has 1 step of 8 tiles and the training 40, .*set train.steps_per_epoch: 15"),
        ({"epochs": 400}, 100, "train.steps_per_epoch: 5"),
        ({"steps_per_epoch": 20, "epochs": 2}, 100, "the training 40, .*train.steps_per_epoch: 300"),
        ({"steps_per_epoch": 20, "epochs": 10}, 100, None),
        ({"steps_per_epoch": 1, "epochs": 400}, 100, None),
        ({}, 8 * 256 * 256 * 5, None),
    ],
)
def test_few_steps_are_a_warning_with_a_number_that_is_enough(settings, pixels, said):
    found = describe_few_steps(Train(**settings), 256, pixels)
    if said is None:
        assert found is None
        return
    assert re.search(said, found)
    steps = int(found.rpartition(": ")[2])
    assert describe_few_steps(Train(**{**settings, "steps_per_epoch": steps}), 256, pixels) is None


def test_classes_with_few_pixels_are_one_warning():
    assert not [*describe_little_left(["a", "b"], [20, 100], [10, 50], 180)]
    [few] = describe_little_left(["a", "b", "c"], [19, 100, 100], [10, 9, 50], 288)
    assert few.startswith("few pixels train and validate: 'a' 19 and 10, 'b' 100 and 9;")
    [gap] = describe_little_left(["a", "b"], [20, 20], [10, 10], 121)
    assert gap.startswith("the gap around validation areas takes 50.4 % of the labelled pixels")


@pytest.fixture
def fields(tmp_path):
    """A scene of 100 x 100 pixels with two polygons of each of two classes, each of 8 x 8 pixels."""
    transform = Affine(10, 0, 500_000, 0, -10, 9_000_000)
    pixels = np.random.default_rng(0).integers(1, 200, (3, 100, 100)).astype(np.uint8)
    with rasterio.open(
        tmp_path / "scene.tif", "w", driver="GTiff", count=3, height=100, width=100, dtype="uint8", crs="EPSG:32721",
        transform=transform,
    ) as file:  # fmt: skip
        file.write(pixels)
    corners = [(10, 10), (60, 10), (10, 60), (60, 60)]
    boxes = [
        shapely.box(500_000 + 10 * x, 9_000_000 - 10 * y - 80, 500_000 + 10 * x + 80, 9_000_000 - 10 * y)
        for x, y in corners
    ]
    geopandas.GeoDataFrame({"kind": ["a", "b", "b", "a"]}, geometry=boxes, crs=32721).to_file(tmp_path / "p.gpkg")
    return tmp_path


def outside_warnings(place, background, **labels):
    task = {"type": "multiclass", "classes": [{"name": "a", "value": 1}, {"name": "b", "value": 2}]}
    raw = {
        "name": "trial",
        "task": task | ({"background": False} if background is False else {}),
        "data": {
            "train": {
                "images": str(place / "scene.tif"),
                "labels": {"path": str(place / "p.gpkg"), "field": "kind", **labels},
            },
            "val": {"by": "polygon", "polygons": str(place / "p.gpkg"), "fraction": 0.5, "gap": 0},
        },
        "model": SMALLEST,
        "train": {"tile_size": 32, "steps_per_epoch": 20},
    }
    report = check(Recipe.from_dict(raw))
    assert not report.problems
    return [one for one in report.warnings if "outside the polygons" in one]


def test_sparse_polygons_that_become_background_by_default_are_a_warning(fields):
    [warning] = outside_warnings(fields, None)
    assert warning.startswith("97.4 % of the labelled pixels are outside the polygons")  # 1 - 4 * 64 / 10,000
    assert "labels.outside_polygons: ignore and task.background: false" in warning
    assert not outside_warnings(fields, None, outside_polygons="background")  # somebody says so
    assert not outside_warnings(fields, False, outside_polygons="ignore")
