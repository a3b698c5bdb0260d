import numpy as np
import pytest
import rasterio
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import confusion_matrix
from synthetic import place, read_whole, recipe_for, write_pair, write_raster

from segkit.data.area import full_areas
from segkit.data.pairing import open_samples
from segkit.data.split import spatial_split
from segkit.task import IGNORE
from segkit.training import discriminant
from segkit.training.discriminant import LinearDiscriminant


def pixels_of(areas):
    """Known pixels (n, bands) and their categories (T, n), by whole reads."""
    pixels, categories = [], []
    for area in areas:
        tile, targets, counted = read_whole(area)
        targets = area.labels.task.harden(targets)
        here = counted & (targets != IGNORE).all(axis=0)
        pixels.append(tile.pixels[:, here].T)
        categories.append(targets[:, here])
    return np.concatenate(pixels), np.concatenate(categories, axis=1)


def count(found, areas, task):
    """Confusion (T, true, decided) of the highest scores on the pixels of areas."""
    pixels, categories = pixels_of(areas)
    counts = []
    for weights, biases, truth in zip(found.weights, found.biases, categories, strict=True):
        decided = (pixels @ weights.T + biases).argmax(axis=1)
        counts.append(confusion_matrix(truth, decided, labels=range(len(task.categories))))
    return np.stack(counts)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_decides_as_sklearn_does(tmp_path, kind):
    for seed, name in enumerate("ab"):
        write_pair(tmp_path, kind, name, height=128, width=100, seed=seed)
        random = np.random.default_rng(seed)
        pixels = random.normal(5000, 80, (3, 128, 100)) + random.normal(0, 60, (1, 128, 100))  # bands go together
        with rasterio.open(tmp_path / "labels" / f"{name}.tif") as labels:
            codes = labels.read() % 255
        pixels[: len(codes)] += 120 * (codes > 0)
        pixels[2] += 20 * codes[0]
        write_raster(tmp_path / "images" / f"{name}.tif", pixels.astype(np.float32), left=place(name))
    recipe = recipe_for(tmp_path, kind)
    samples = open_samples(recipe.data.train, recipe.data, recipe.task).samples
    train, validation = spatial_split(samples, recipe.task, recipe.data.val)
    (fitted, known), (tested, true) = pixels_of(train), pixels_of(validation)
    counts = count(LinearDiscriminant.fit(train, recipe.task), validation, recipe.task)
    assert counts.sum() == true.size
    for target in range(recipe.task.n_targets):
        oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        oracle.fit(fitted.astype(np.float64), known[target])
        expected = confusion_matrix(true[target], oracle.predict(tested.astype(np.float64)))
        assert 0.55 < np.trace(expected) / expected.sum() < 0.98  # neither chance nor certainty
        np.testing.assert_array_equal(counts[target], expected)


def test_a_category_that_training_never_showed_is_never_decided(tmp_path):
    write_pair(tmp_path, "multiclass", "a")
    recipe = recipe_for(tmp_path, "multiclass")
    labels = np.zeros((96, 96), np.uint8)
    labels[:, :40] = 9
    write_raster(tmp_path / "labels" / "a.tif", labels)
    areas = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    assert count(LinearDiscriminant.fit(areas, recipe.task), areas, recipe.task)[0, :, 1].sum() == 0


def test_bands_that_say_the_same_do_no_harm(tmp_path):
    """A covariance that cannot be inverted: a band stands twice, another is constant."""
    write_pair(tmp_path, "binary", "a")
    recipe = recipe_for(tmp_path, "binary")
    areas = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    alone = count(LinearDiscriminant.fit(areas, recipe.task), areas, recipe.task)
    tile = areas[0].sample.scene.read()
    pixels = np.nan_to_num(tile.pixels[[0, 1, 2, 0, 0]])
    pixels[4] = np.where(tile.valid, 7, 0)
    write_raster(tmp_path / "images" / "a.tif", pixels, nodata=0)
    areas = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    found = count(LinearDiscriminant.fit(areas, recipe.task), areas, recipe.task)
    assert np.abs(found - alone).sum() <= 0.001 * alone.sum()  # how far a covariance is shrunk depends on its size


@pytest.mark.parametrize(("pixels", "bands"), [(400, 5), (30, 40)])
def test_scores_are_those_of_sklearn_with_fewer_pixels_than_bands_too(tmp_path, pixels, bands):
    random = np.random.default_rng(0)
    image = random.normal(100, 20, (bands, 20, 20)) @ random.normal(0, 1, (20, 20)) / 4
    codes = np.full(400, 255, np.uint8)
    codes[:pixels] = random.choice([0, 3, 9], pixels)
    write_raster(tmp_path / "images" / "a.tif", image.astype(np.float32))
    write_raster(tmp_path / "labels" / "a.tif", codes.reshape(20, 20))
    recipe = recipe_for(tmp_path, "multiclass")
    areas = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    found = LinearDiscriminant.fit(areas, recipe.task)
    given, categories = pixels_of(areas)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(given.astype(np.float64), categories[0])
    tested = random.normal(0, 100, (50, bands))
    scores = tested @ found.weights[0].T + found.biases[0]
    expected = oracle.decision_function(tested)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_large_areas_are_sampled_evenly(tmp_path, monkeypatch):
    for seed, name in enumerate("abc"):
        write_pair(tmp_path, "binary", name, height=96, width=96, seed=seed)
    recipe = recipe_for(tmp_path, "binary")
    areas = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    monkeypatch.setattr(discriminant, "_WINDOW_PX", 16)
    sampled = discriminant._sample_windows(areas, 96 * 96)
    pixels = [sum(window.width * window.height for window in area.windows) for area in sampled]
    assert pixels == [3072, 3072, 3072]  # of 9,216 each
    assert discriminant._sample_windows(areas, 3 * 96 * 96) == areas
    whole = LinearDiscriminant.fit(sampled, recipe.task)
    part = LinearDiscriminant.fit(areas, recipe.task, max_pixels=96 * 96)
    np.testing.assert_array_equal(whole.weights, part.weights)
    assert whole.pixels == part.pixels < LinearDiscriminant.fit(areas, recipe.task).pixels


def test_cover_fractions_count_as_what_covers_most(tmp_path):
    write_pair(tmp_path, "binary", "a")
    with rasterio.open(tmp_path / "labels" / "a.tif") as labels:
        codes = labels.read(1)
    share = np.where(codes == 255, np.nan, np.where(codes == 7, 0.8, 0.3)).astype(np.float32)
    write_raster(tmp_path / "shares" / "a.tif", share)
    recipe = recipe_for(tmp_path, "binary")
    soft = {"images": str(tmp_path / "images"), "labels": {"path": str(tmp_path / "shares"), "fractions": True}}
    counts = []
    for each in (recipe, recipe_for(tmp_path, "binary", data={"train": soft})):
        areas = full_areas(open_samples(each.data.train, each.data, each.task).samples)
        counts.append(count(LinearDiscriminant.fit(areas, each.task), areas, each.task))
    assert counts[0].sum() > 8000
    np.testing.assert_array_equal(*counts)


def test_class_weights_multiply_the_shares(tmp_path):
    write_pair(tmp_path, "multiclass", "a")
    recipe = recipe_for(tmp_path, "multiclass")
    areas = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    found = LinearDiscriminant.fit(areas, recipe.task, class_weights=[1.0, 2.0, 5.0])
    pixels, categories = pixels_of(areas)
    priors = np.bincount(categories[0]) * [1.0, 2.0, 5.0]
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors / priors.sum())
    oracle.fit(pixels.astype(np.float64), categories[0])
    expected = oracle.decision_function(pixels)
    np.testing.assert_allclose(pixels @ found.weights[0].T + found.biases[0], expected, rtol=1e-5, atol=1e-3)
