from dataclasses import replace

import numpy as np
import pytest
import torch
from rasterio.windows import Window
from synthetic import recipe_for, write_pairs

from segkit.data.area import full_areas
from segkit.data.areas import open_areas
from segkit.data.pairing import open_samples
from segkit.data.statistics import Statistics
from segkit.models.segmenter import Segmenter
from segkit.recipe.schema import Recipe
from segkit.task import IGNORE
from segkit.training import pixels
from segkit.training.pixels import draw_samples, read_labelled_pixels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory)


def opened(folder, kind, **model):
    recipe = Recipe.from_dict(recipe_for(folder, kind).to_dict() | {"model": {"architecture": "forest", **model}})
    areas = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    statistics = Statistics.from_areas(areas, recipe.task)
    return Segmenter(recipe, statistics.mean, statistics.std, ("r", "g", "b")).eval(), areas, statistics.counts


def test_features_are_those_of_a_prediction(data, monkeypatch):
    """Windows are read with what lies around them, and without what is masked."""
    model, *_ = opened(data["multiclass"], "multiclass", features={"texture": [5]})
    training, _ = open_areas(model.recipe)
    monkeypatch.setattr(pixels, "_WINDOW_PX", 20)
    found = np.concatenate([features for features, _ in read_labelled_pixels(training, model)])
    expected = []
    for area in training:
        window = area.sample.scene.grid.full_window
        tile, targets = area.sample.scene.read(window), area.labels.read(window)
        area.mask(tile, targets, window)
        whole = model.pixel_features(torch.from_numpy(tile.pixels)[None], torch.from_numpy(tile.valid)[None])[0]
        for part in area.windows:
            inner = (..., *part.toslices())
            expected.append(whole[inner].numpy()[:, targets[0][inner] != IGNORE].T)
    expected = np.concatenate(expected)
    assert len(found) == len(expected) > 1000
    np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(expected, axis=0))


def test_without_a_model_pixels_are_in_the_units_of_the_files(data):
    _, areas, counts = opened(data["binary"], "binary")
    found = list(read_labelled_pixels(areas))
    assert sum(targets.size for _, targets in found) == counts.sum()
    assert np.isin(found[0][0][:50], areas[0].sample.scene.read().pixels).all()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_a_sample_keeps_small_categories_and_its_weights_restore_the_shares(data, kind):
    model, areas, counts = opened(data[kind], kind)
    limit = 1500
    samples = draw_samples(areas, model, counts, limit, 0, None)
    for target, sample in enumerate(samples):
        kept = np.bincount(sample.categories, minlength=counts.shape[1])
        assert 0.9 * limit < kept.sum() < 1.1 * limit
        assert sample.labelled == counts[target].sum()
        assert kept.max() < 1.2 * kept.min()  # all categories have more pixels than their part
        restored = np.bincount(sample.categories, sample.weights, minlength=counts.shape[1])
        np.testing.assert_allclose(restored / restored.sum(), counts[target] / counts[target].sum())
        assert sample.weights.mean() == pytest.approx(1)
    again = draw_samples(areas, model, counts, limit, 0, None)
    other = draw_samples(areas, model, counts, limit, 1, None)
    assert all(np.array_equal(a.features, b.features) for a, b in zip(samples, again, strict=True))
    assert not np.array_equal(samples[0].features, other[0].features)


def test_all_pixels_are_taken_if_there_are_few_and_class_weights_count(data):
    model, areas, counts = opened(data["multiclass"], "multiclass")
    (sample,) = draw_samples(areas, model, counts, int(counts.sum()), 0, None)
    assert len(sample.features) == counts.sum()
    assert sample.weights is None
    (sample,) = draw_samples(areas, model, counts, int(counts.sum()), 0, [1.0, 4.0, 1.0])
    assert (sample.weights[sample.categories == 1] == 4 * sample.weights[sample.categories == 0][0]).all()


@pytest.mark.parametrize(
    ("counts", "total", "kept"),
    [([10, 1000, 50], 100, [10, 45, 45]), ([0, 30, 30], 60, [0, 30, 30]), ([5, 5, 500], 100, [5, 5, 90])],
)
def test_categories_share_what_small_ones_leave(counts, total, kept):
    shares = pixels._kept_shares(np.array(counts), total)
    np.testing.assert_allclose(shares * counts, kept)


def test_pixels_without_all_bands_are_left_out(data):
    model, areas, _ = opened(data["binary"], "binary")
    window = Window(0, 0, 12, 12)  # the corner without data
    (area, *_) = [replace(one, windows=(window,)) for one in areas]
    features, _ = next(read_labelled_pixels([area], model))
    assert len(features) == 12 * 12 - 10 * 10
