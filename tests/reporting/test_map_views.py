from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window
from synthetic import patches, place, recipe_for, segmenter, write_pair, write_raster

from segkit.data.area import full_areas
from segkit.data.pairing import open_samples
from segkit.data.split import train_val_split
from segkit.evaluation.decisions import ModelPredictor, map_task
from segkit.evaluation.worst_windows import RankedWindow
from segkit.inference.predict import predict
from segkit.inference.settings import PredictOptions
from segkit.io.mosaic import Mosaic
from segkit.io.scene import Scene
from segkit.plots.images import block_means
from segkit.reporting import map_views as maps
from segkit.reporting.decision_maps import DecisionMapWriter
from segkit.reporting.map_views import PixelStates, ReportMap, read_overview, scene_layers, select_display_bands
from segkit.reporting.viewer import FIRST_STATE, NODATA, UNLABELLED
from segkit.task import IGNORE, LandCoverClass, Task

FAST = PredictOptions(device="cpu", precision="fp32", tile=64, overlap=8)
HEIGHT, WIDTH = 67, 90


@pytest.fixture(scope="module", params=["binary", "multiclass", "multilabel"])
def case(request, tmp_path_factory):
    """A predicted map with all that may lie beside it, and its model."""
    folder = tmp_path_factory.mktemp(request.param)
    write_pair(folder, request.param, "a", height=HEIGHT, width=WIDTH)
    model = segmenter(folder, request.param)
    model._receptive_field = 40
    files = folder / "map.tif", folder / "chances.tif"
    predict(model, folder / "images" / "a.tif", files[0], probabilities=files[1], device="cpu", precision="fp32")
    recipe = recipe_for(folder, request.param)
    (area,) = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    scene, view = select_display_bands(area.sample.scene, [500.0] * 3, [50.0] * 3)
    return ReportMap("a", files[0], model.task, Window(0, 0, WIDTH, HEIGHT), scene, view, area, files[1]), model, area


def with_steps(step):
    """A budget of pixels that makes cells of this side."""
    return HEIGHT * WIDTH / step**2 if step > 1 else 10**6


def test_the_overview_of_a_mosaic_is_that_of_one_map(case, tmp_path):
    """With its imagery and probabilities in as many files."""
    shown, _, area = case
    mosaics = []
    for number, path in enumerate((shown.path, shown.probabilities, area.sample.scene.paths[0])):
        (tmp_path / str(number)).mkdir()
        with rasterio.open(path) as dataset:
            for left, width in ((0, 31), (31, WIDTH - 31)):
                window = Window(left, 0, width, HEIGHT)
                profile = dataset.profile | {"width": width, "transform": dataset.window_transform(window)}
                profile |= {"blockxsize": 16, "blockysize": 16, "tiled": True, "driver": "GTiff"}
                with rasterio.open(tmp_path / str(number) / f"{left:02}.tif", "w", **profile) as part:
                    part.write(dataset.read(window=window))
                    part.update_tags(**dataset.tags())
                    part.descriptions, part.scales, part.offsets = dataset.descriptions, dataset.scales, dataset.offsets
        mosaics.append(Mosaic(tmp_path / str(number)))
    scene, rendering = select_display_bands(Scene.from_files(mosaics[2]), [500.0] * 3, [50.0] * 3)
    assert map_task(mosaics[0]).legend == map_task(shown.path).legend
    cut = replace(shown, path=mosaics[0], probabilities=mosaics[1], scene=scene, rendering=rendering)
    found, expected = read_overview(cut, with_steps(2)), read_overview(shown, with_steps(2))
    for name in ("decided", "truth", "confidence", "pixels", "valid"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.grid, found.counts) == (expected.grid, expected.counts)


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("side", [16, 2048])
def test_an_overview_samples_cells_and_counts_all_pixels(case, monkeypatch, step, side):
    """Oracle: the map as rasterio reads it, and means with numpy, cell by cell."""
    shown, _, area = case
    monkeypatch.setattr(maps, "_READ_SIZE_PX", side)
    seen = read_overview(shown, with_steps(step))
    assert seen.step == step
    with rasterio.open(shown.path) as dataset:
        values, nodata = dataset.read(), dataset.nodata
    rows, columns = (np.minimum(np.arange(0, n, step) + step // 2, n - 1) for n in (HEIGHT, WIDTH))
    sampled = values[np.ix_(range(len(values)), rows, columns)]
    written = shown.task.map_values(
        np.where(seen.decided == IGNORE, 0, seen.decided), (seen.decided != IGNORE).all(axis=0)
    )
    np.testing.assert_array_equal(written, sampled)
    tile = area.sample.scene.read()
    truth = area.read_truth(area.sample.scene.grid.full_window, tile.valid)
    np.testing.assert_array_equal(seen.truth, truth[np.ix_(range(len(truth)), rows, columns)])
    for row in range(0, HEIGHT, step):
        for column in range(0, WIDTH, step):
            cell = np.s_[row : row + step, column : column + step]
            known = tile.valid[cell]
            assert seen.valid[row // step, column // step] == known.any()
            if known.any():
                expected = [band[cell][known].mean() for band in tile.pixels]
                np.testing.assert_allclose(seen.pixels[:, row // step, column // step], expected, rtol=1e-5)
    assert seen.counts["valid"] == (values != nodata).all(axis=0).sum()
    for (name, target, category), row in zip(shown.task.scored_categories, shown.task.legend, strict=True):
        value = category if shown.task.n_targets > 1 else row["value"]
        assert seen.counts["pixels"][name] == (values[target] == value).sum()
    a, b = seen.grid.transform @ (0, 0), seen.grid.transform @ (1, 1)
    assert a == (place("a"), 9_000_000)
    assert b == (place("a") + 10 * step, 9_000_000 - 10 * step)


def test_means_ignore_nodata():
    pixels = np.array([[[1, 3, 7], [900, 5, np.nan]]], np.float32)
    valid = np.array([[True, True, False], [False, True, True]])
    means, known = block_means(pixels, valid, 2)
    np.testing.assert_array_equal(means, [[[3, np.nan]]])
    np.testing.assert_array_equal(known, [[True, True]])


def test_confidence_is_the_probability_of_the_predicted_class(case):
    """Oracle: the task's own, of the model's probabilities."""
    shown, model, _ = case
    window = Window(3, 5, 40, 30)
    targets = shown.read_decided(window)
    with rasterio.open(shown.probabilities) as dataset:
        probabilities = dataset.read(window=window).astype(np.float32) * dataset.scales[0]
    valid = (targets != IGNORE).all(axis=0)
    expected = model.task.confidence(
        torch.from_numpy(probabilities)[None], torch.from_numpy(np.maximum(targets, 0))[None]
    )[0]
    found = shown.read_confidence(window, targets)
    np.testing.assert_allclose(found[:, valid], expected[:, valid], atol=1e-6)
    assert np.isnan(found[:, ~valid]).all()
    assert valid.any()
    assert not valid.all()


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_probability_of_background_without_a_band(tmp_path, head):
    task = Task("multiclass", [LandCoverClass("water", 3), LandCoverClass("forest", 9)], head=head)
    write_raster(tmp_path / "map.tif", np.array([[0, 3, 9, 255]], np.uint8), nodata=255)
    bands = [(0.25, 0.75), (0.5, 0.125), (0.125, 0.5), (0, 0)]
    names = ("water", "forest")
    if head == "softmax":
        bands, names = [(0.75, *each) for each in bands], ("background", *names)
    write_raster(tmp_path / "chances.tif", np.array(bands, np.float32).T[:, None])
    with rasterio.open(tmp_path / "chances.tif", "r+") as dataset:
        dataset.descriptions = names
    shown = ReportMap("x", tmp_path / "map.tif", task, Window(0, 0, 4, 1), probabilities=tmp_path / "chances.tif")
    targets = shown.read_decided(shown.window)
    none = 0.75 if head == "softmax" else 0.25
    np.testing.assert_array_equal(shown.read_confidence(shown.window, targets), [[[none, 0.5, 0.5, np.nan]]])


def test_a_window_of_a_map_equals_that_part_of_the_whole(case):
    shown, _, area = case
    part = ReportMap("part", shown.path, shown.task, Window(20, 11, 33, 40), shown.scene, shown.rendering, area)
    seen, all_of_it = read_overview(part, 10**6), read_overview(shown, 10**6)
    here = (slice(None), *part.window.toslices())
    np.testing.assert_array_equal(seen.decided, all_of_it.decided[here])
    np.testing.assert_array_equal(seen.truth, all_of_it.truth[here])
    np.testing.assert_array_equal(seen.pixels, all_of_it.pixels[here])
    assert seen.grid == all_of_it.grid.subgrid(part.window)
    assert seen.confidence is None


def test_decision_maps_equal_the_output_of_predict(case, tmp_path):
    """Oracle: `segkit.predict` of the whole scene, of which validation has a part."""
    shown, model, area = case
    recipe = recipe_for(area.sample.scene.paths[0].parent.parent, shown.task.type)
    _, (validating,) = train_val_split(recipe, [area.sample], ())
    with DecisionMapWriter(tmp_path, model) as kept:
        for part in ModelPredictor(model, FAST)(validating):
            kept.add(validating, part)
    (found,) = kept.maps
    inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for window in validating.windows:
        inside[window.toslices()] = True
        assert found.window.row_off <= window.row_off
        assert found.window.col_off + found.window.width >= window.col_off + window.width
    for mine, theirs in ((found.path, shown.path), (found.probabilities, shown.probabilities)):
        with rasterio.open(mine) as one, rasterio.open(theirs) as other:
            assert one.descriptions == other.descriptions
            expected = np.where(inside, other.read(), np.array(other.nodata, other.dtypes[0]))
            difference = np.abs(one.read().astype(int) - expected.astype(int))
        assert np.mean(difference > 1) < 0.01  # other windows, so not to the last bit
    assert 0 < inside.mean() < 1
    assert map_task(found.path).legend == model.task.legend


def test_no_maps_are_left_after_an_error(case, tmp_path):
    _, model, area = case

    def stopped():
        with DecisionMapWriter(tmp_path, model) as kept:
            kept.add(area, next(ModelPredictor(model, FAST)(area)))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped()
    assert not list(tmp_path.iterdir())


def test_a_window_view_shows_map_labels_and_imagery(case):
    shown, _, area = case
    window = Window(0, 0, 30, 24)
    look = shown.read_window_view(RankedWindow(area, window, 10, 1))
    tile = area.sample.scene.read(window)
    np.testing.assert_array_equal(look.decided, shown.read_decided(window))
    np.testing.assert_array_equal(look.truth, area.read_truth(window, (look.decided != IGNORE).any(axis=0)))
    np.testing.assert_array_equal(look.image, shown.rendering.render(tile.pixels, tile.valid))


def test_pixel_states():
    exclusive = Task("multiclass", [LandCoverClass("water", 3, "#0000ff"), LandCoverClass("dry_forest", 9, "#008000")])
    states = PixelStates()
    targets = np.array([[[0, 1, 2, IGNORE, 1]]], np.int16)
    found = states.encode(targets, exclusive, np.array([[True, True, True, True, False]]))
    named = [state.name for state in states.states]
    assert named == ["background", "water", "dry forest"]
    assert found.tolist() == [[FIRST_STATE, FIRST_STATE + 1, FIRST_STATE + 2, UNLABELLED, NODATA]]
    assert states.states[1].color == "#0000ff"
    assert [state.background for state in states.states] == [True, False, False]

    overlapping = Task("multilabel", [LandCoverClass("water", 1, "#0000ff"), LandCoverClass("forest", 2, "#00ff00")])
    states = PixelStates()
    targets = np.array([[[1, 1, 0, IGNORE, IGNORE]], [[0, 1, 0, 1, IGNORE]]], np.int16)
    found = states.encode(targets, overlapping, np.ones((1, 5), bool))
    named = {place + FIRST_STATE: state.name for place, state in enumerate(states.states)}
    assert [named.get(place, place) for place in found[0].tolist()] == [
        "water", "water + forest", "no class", "forest (others unlabelled)", UNLABELLED
    ]  # fmt: skip
    assert {state.name: state.color for state in states.states}["water + forest"] == "#008080"


def test_scene_layers_equal_the_overview(case):
    shown, _, _ = case
    seen, states = read_overview(shown, 10**6), PixelStates()
    drawn = np.random.default_rng(0).random(seen.confidence.shape, np.float32)
    seen = replace(seen, confidence=np.where(np.isnan(seen.confidence), np.nan, drawn).astype(np.float32))
    found = scene_layers(shown, seen, states, "A note.")
    names = ["nothing", "not known", *(state.name for state in states.states)]
    for row, column in ((0, 0), (20, 30), (HEIGHT - 1, WIDTH - 1), (40, 70)):
        targets = seen.decided[:, row, column]
        said = names[found.decided[row, column]]
        if (targets == IGNORE).all():
            assert said == "nothing"
            assert np.isnan(found.confidence[row, column])
        else:
            there = [name for name, target, category in shown.task.scored_categories if targets[target] == category]
            assert said == (" + ".join(there) or "no class")
            assert found.confidence[row, column] == seen.confidence[:, row, column].min()
    assert found.note.startswith("A note.")
    assert set(found.polygons["class"]) <= {name for name, _, _ in shown.task.scored_categories}
    assert found.polygons["mean_conf"].between(0, 1).all()
    assert found.image.shape == (HEIGHT, WIDTH, 3)


def test_polygons_of_a_reduced_map_are_simplified_with_a_note(tmp_path, monkeypatch):
    task = Task("binary", [LandCoverClass("cleared", 7)])
    file = write_raster(tmp_path / "map.tif", (7 * patches(HEIGHT, WIDTH, 0)).astype(np.uint8), nodata=255)
    shown = ReportMap("a", file, task, Window(0, 0, WIDTH, HEIGHT))
    monkeypatch.setattr(maps, "_MAX_POLYGONS", 1)
    near = scene_layers(shown, read_overview(shown, 10**6), PixelStates())
    assert len(near.polygons) == 1
    assert "the 1 largest of" in near.note
    monkeypatch.setattr(maps, "_MAX_POLYGONS", 10**6)
    far = scene_layers(shown, read_overview(shown, with_steps(3)), PixelStates())
    assert "one pixel of 3 x 3" in far.note
    assert "smaller than 36 pixels" in far.note
    assert (far.polygons["pixels"] >= 36).all()


@pytest.mark.parametrize(("bands", "kept"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 3)), (224, (37, 112, 186))])
def test_only_the_bands_that_are_shown_are_read(tmp_path, bands, kept):
    random = np.random.default_rng(0)
    file = write_raster(tmp_path / "a.tif", random.normal(5, 1, (bands, 12, 14)).astype(np.float32))
    scene = Scene.from_files(file)
    part, view = select_display_bands(scene, tuple(range(bands)), (1.0,) * bands)
    assert part.bands == kept
    assert view.mean == tuple(band - 1 for band in kept)
    tile, all_of_it = part.read(), scene.read()
    from segkit.plots.images import BandRendering

    whole_view = BandRendering.from_statistics(scene.band_names, tuple(range(bands)), (1.0,) * bands)
    np.testing.assert_array_equal(
        view.render(tile.pixels, tile.valid), whole_view.render(all_of_it.pixels, all_of_it.valid)
    )
    assert select_display_bands(scene)[1] is None
