from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.windows import Window
from sklearn.utils.class_weight import compute_class_weight
from synthetic import recipe_for, write_pair, write_raster

from segkit.data.area import LabelledArea, full_areas
from segkit.data.pairing import open_samples
from segkit.data.statistics import (
    CLASS_WEIGHTS,
    BandMoments,
    Statistics,
    balanced_weights,
    class_weights,
    effective_weights,
)
from segkit.errors import DataError
from segkit.io.cover import PixelRegion
from segkit.task import LandCoverClass, Task

NODATA = -9999.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics")
    write_pair(folder, "binary", "a", height=20, width=17)
    return folder


def sample_of(folder, pixels, labels=None):
    write_raster(folder / "images" / "a.tif", pixels, nodata=NODATA)
    if labels is not None:
        write_raster(folder / "labels" / "a.tif", labels)
    recipe = recipe_for(folder, "binary")
    (sample,) = open_samples(recipe.data.train, recipe.data, recipe.task).samples
    return sample, recipe.task


@given(
    noise=arrays(np.float32, (2, 20, 17), elements=st.floats(-5, 5, width=32)),
    offset=st.sampled_from([0, -3, 1e4, 1e6]),
    scale=st.sampled_from([1, 1e-3, 100]),
    gone=arrays(bool, (2, 20, 17)),
    unfinished=arrays(bool, (2, 20, 17)),
)
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_mean_and_deviation_are_those_of_all_valid_pixels(folder, noise, offset, scale, gone, unfinished):
    pixels = (noise * scale + offset).astype(np.float32)
    pixels[gone] = NODATA
    pixels[unfinished] = np.nan
    pixels[:, 0, 0] = offset  # one pixel is always there
    sample, task = sample_of(folder, pixels)
    exclude = Window(3, 4, 6, 5)
    area = LabelledArea(sample, tuple(sample.scene.grid.tiles(7)), PixelRegion((exclude,)))
    found = Statistics.from_areas([area], task)
    seen = np.ones((20, 17), dtype=bool)
    seen[exclude.toslices()] = False
    valid = sample.scene.read().valid & seen
    for band in range(2):
        values = pixels[band][valid & np.isfinite(pixels[band]) & (pixels[band] != NODATA)].astype(np.float64)
        tiny = np.abs(values).max() * 1e-13
        assert found.mean[band] == pytest.approx(values.mean(), rel=1e-12, abs=1e-12)
        assert found.std[band] == pytest.approx(values.std(), rel=1e-9, abs=tiny)


def test_counts_are_labelled_pixels_of_each_category(tmp_path):
    write_pair(tmp_path, "multiclass", "a")
    write_pair(tmp_path, "multiclass", "b", height=40, width=50, seed=2)
    recipe = recipe_for(tmp_path, "multiclass")
    areas = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    expected = np.zeros((1, 3), dtype=int)
    for area in areas:
        codes = area.labels.read(area.sample.scene.grid.full_window)[0][area.sample.scene.read().valid]
        expected[0] += [(codes == category).sum() for category in range(3)]
    np.testing.assert_array_equal(Statistics.from_areas(areas, recipe.task).counts, expected)


def test_a_band_without_a_pixel_is_named(tmp_path):
    write_pair(tmp_path, "binary", "a", height=20, width=17)
    pixels = np.ones((2, 20, 17), np.float32)
    pixels[1] = NODATA
    sample, task = sample_of(tmp_path, pixels)
    with pytest.raises(DataError, match=r"no pixel of the training areas is valid in band 2 \(2\); .*data\.bands"):
        Statistics.from_areas(full_areas([sample]), task)


def test_areas_without_training_pixels_are_refused(tmp_path):
    write_pair(tmp_path, "binary", "a", height=20, width=17)
    sample, task = sample_of(tmp_path, np.ones((2, 20, 17), np.float32))
    with pytest.raises(DataError, match=r"no training pixel is left: .* data\.val\.gap"):
        Statistics.from_areas(
            [LabelledArea(sample, (Window(0, 0, 5, 5),), PixelRegion((Window(-9, -9, 30, 30),)))], task
        )
    write_raster(tmp_path / "labels" / "a.tif", np.full((20, 17), 255, np.uint8))
    with pytest.raises(DataError, match=r"there is no training pixel: .* correct the labels"):
        Statistics.from_areas(full_areas([sample]), task)


WEIGHED = [
    Task("binary", (LandCoverClass("a", 1),)),
    Task("multiclass", (LandCoverClass("a", 1), LandCoverClass("b", 2))),
    Task("multiclass", (LandCoverClass("a", 1), LandCoverClass("b", 2), LandCoverClass("c", 3)), background=False),
    Task("multilabel", (LandCoverClass("a", 1), LandCoverClass("b", 2))),
    Task("binary", (LandCoverClass("a", 1),), head="sigmoid"),
    Task("multiclass", (LandCoverClass("a", 1), LandCoverClass("b", 2)), head="sigmoid"),
]
every_weighed = pytest.mark.parametrize("task", WEIGHED, ids=lambda task: f"{task.type}-{task.head}-{task.channels}")


@every_weighed
def test_balanced_weights_are_those_of_sklearn(task):
    counts = np.random.default_rng(0).integers(1, 500, (task.n_targets, len(task.categories)))
    weights = balanced_weights(counts, task)
    for name, (target, category) in zip(task.channel_names, task.channel_categories, strict=True):
        labels = np.repeat(np.arange(len(counts[target])), counts[target])
        each = compute_class_weight("balanced", classes=np.arange(len(counts[target])), y=labels)
        assert weights[name] == pytest.approx(each[category])


def test_a_class_that_never_occurs_has_weight_one():
    task = Task("multiclass", (LandCoverClass("a", 1), LandCoverClass("b", 2)))
    assert balanced_weights(np.array([[30, 0, 10]]), task)["a"] == 1


@every_weighed
@pytest.mark.parametrize("scale", [1, 1e10])
def test_effective_weights_are_the_formula_of_their_paper(task, scale):
    """In decimals of 60 digits, where 1 - 1/N and its power lose nothing."""
    random = np.random.default_rng(0)
    counts = (random.integers(1, 500, (task.n_targets, len(task.categories))) * scale).astype(np.int64)
    weights = effective_weights(counts, task)
    with localcontext(prec=60):
        expected = {}
        for name, (target, category) in zip(task.channel_names, task.channel_categories, strict=True):
            known = int(counts[target].sum())
            beta = 1 - 1 / Decimal(known)
            own, others = (
                (1 - beta) / (1 - beta**pixels)
                for pixels in (int(counts[target, category]), known - int(counts[target, category]))
            )
            expected[name] = own / others if task.head == "sigmoid" else own
        mean = sum(expected.values()) / len(expected) if task.head == "softmax" else 1
        expected = {name: float(weight / mean) for name, weight in expected.items()}
    assert weights == pytest.approx(expected, rel=1e-12)
    if task.head == "softmax":
        assert np.mean(list(weights.values())) == pytest.approx(1)


@pytest.mark.parametrize("rule", CLASS_WEIGHTS.values(), ids=CLASS_WEIGHTS)
@every_weighed
def test_rare_categories_weigh_more(rule, task):
    counts = np.tile(10 ** np.arange(5, 5 - len(task.categories), -1), (task.n_targets, 1))
    weights = list(rule(counts, task).values())
    assert weights == sorted(weights)
    if task.n_targets == 1:
        # Among small shares the weights go with the inverse share.
        ratios = np.divide(weights[1:], weights[:-1])
        assert (ratios == pytest.approx(10, rel=0.5)) if task.head == "softmax" else (ratios > 9).all()
    assert weights[-1] > 1


@every_weighed
def test_effective_weights_of_absent_or_only_classes_are_one(task):
    counts = np.zeros((task.n_targets, len(task.categories)), dtype=np.int64)
    assert set(effective_weights(counts, task).values()) == {1.0}
    counts[:, 0] = 7
    assert set(effective_weights(counts, task).values()) == {1.0}
    counts[:, -1] = 1
    weights = effective_weights(counts, task)
    assert np.isfinite(list(weights.values())).all()
    assert list(weights.values())[-1] > 1
    if task.channels == 3 and task.head == "softmax":
        assert list(weights.values())[1] == 1
        assert np.mean(list(weights.values())) == pytest.approx(1)  # of those that occur, and so of all


@every_weighed
def test_class_weights_are_one_number_per_channel(task):
    counts = np.random.default_rng(0).integers(1, 500, (task.n_targets, len(task.categories)))
    names = task.channel_names
    assert class_weights(None, counts, task) is None
    for name, rule in CLASS_WEIGHTS.items():
        assert class_weights(name, counts, task) == [rule(counts, task)[channel] for channel in names]
    assert class_weights({names[-1]: 3.0}, counts, task) == [1.0] * (task.channels - 1) + [3.0]
    own = tuple(float(channel + 2) for channel in range(task.channels))
    assert class_weights(own, counts, task) == list(own)
    with pytest.raises(KeyError):
        class_weights("equal", counts, task)


def test_moments_of_parts_are_those_of_the_whole():
    """Far from zero, where a sum of squares would have no digits left."""
    random = np.random.default_rng(0)
    pixels, valid = random.normal(1e8, 2, (2, 30, 40)), random.random((30, 40)) < 0.7
    pixels[1, :9] = np.nan
    merged = BandMoments(2)
    for part in range(3):
        merged.add(pixels[:, part::3], valid[part::3])
    whole = [band[valid & np.isfinite(band)] for band in pixels]
    np.testing.assert_array_equal(merged.number, [values.size for values in whole])
    np.testing.assert_allclose(merged.mean, [values.mean() for values in whole], rtol=1e-14)
    np.testing.assert_allclose(merged.std, [values.std() for values in whole], rtol=1e-7)
