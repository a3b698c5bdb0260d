"""Small scenes of three classes and background, in which errors are planted."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage
from synthetic import write_raster

from segkit.recipe.schema import Recipe

SIZE = 96
COLORS = np.array([[500, 500, 500], [640, 480, 520], [480, 660, 560], [560, 560, 680]])
CLASSES = [{"name": name, "value": value} for value, name in enumerate(("water", "forest", "urban"), 1)]


def make_ground(seed, shape=(SIZE, SIZE)):
    random = np.random.default_rng(seed)
    return np.stack([ndimage.gaussian_filter(random.normal(size=shape), 6) for _ in range(4)]).argmax(axis=0)


def make_recipe(folder, **changes):
    raw = {
        "name": "audited",
        "task": {"type": "multiclass", "classes": CLASSES},
        "data": {
            "train": {"images": str(folder / "images"), "labels": str(folder / "labels")},
            "val": None,
            "ignore": [255],
            "cache": 0,
        },
        "train": {"tile_size": 16, "checkpoint": "last", "baselines": []},
    }
    for part, values in changes.items():
        raw[part] = raw.get(part, {}) | values
    return Recipe.from_dict(raw)


def write_scene(folder, name, ground, labels, left):
    random = np.random.default_rng(left)
    pixels = COLORS[ground].transpose(2, 0, 1) + random.normal(0, 20, (3, *ground.shape))
    write_raster(folder / "images" / f"{name}.tif", pixels.astype(np.uint16), left=left)
    write_raster(folder / "labels" / f"{name}.tif", labels.astype(np.uint8), left=left)


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """Four scenes: a and d with segments of another class, b with shifted labels, c with two classes swapped."""
    folder = tmp_path_factory.mktemp("planted")
    wrong = {}
    for number, name in enumerate("abcd"):
        ground = make_ground(number, (SIZE + 8, SIZE + 8))
        labels = np.roll(ground, (-1, 2), (0, 1)) if name == "b" else ground
        ground, labels = ground[4:-4, 4:-4], labels[4:-4, 4:-4].copy()
        if name == "c":
            labels = np.array([0, 2, 1, 3])[labels]
        if name in "ad":
            wrong[name] = plant(labels, number)
            labels[:, -3:] = 255
        write_scene(folder, name, ground, labels, 500_000 + 10_000 * number)
    return SimpleNamespace(folder=folder, wrong=wrong, recipe=make_recipe(folder))


def plant(labels, seed):
    """Give two segments another class, in place: one a class, one background; return (mask, true, wrong) of each."""
    found = []
    for wrong in (0, 3):
        segments = [
            mask
            for code in range(1, 3)
            for numbers, count in [ndimage.label(labels == code)]
            for mask in (numbers == index for index in range(1, count + 1))
            if 80 < mask.sum() < 900 and not any((mask & other).any() for other, _, _ in found)
        ]
        mask = segments[seed % len(segments)]
        found.append((mask, int(labels[mask][0]), wrong))
        labels[mask] = wrong
    return found
