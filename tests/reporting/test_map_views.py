from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window
from synthetic import patches, place, recipe_for, segmenter, write_pair, write_raster

from segkit.data.area import whole
from segkit.data.pairing import resolve
from segkit.data.split import divide
from segkit.evaluation.decisions import Decider, map_task
from segkit.evaluation.worst_windows import Piece
from segkit.inference.predict import predict
from segkit.inference.settings import Options
from segkit.io.scene import Scene
from segkit.reporting import map_views as maps
from segkit.reporting.decision_maps import Kept
from segkit.reporting.map_views import ShownMap, States, narrowed, overview, scenery
from segkit.reporting.viewer import FIRST_STATE, NOT_KNOWN, NOTHING
from segkit.task.task import IGNORE, LandClass, Task

FAST = Options(device="cpu", precision="fp32", tile=64, overlap=8)
HEIGHT, WIDTH = 67, 90


@pytest.fixture(scope="module", params=["binary", "multiclass", "multilabel"])
def case(request, tmp_path_factory):
    """A predicted map with all that may lie beside it, and its model."""
    folder = tmp_path_factory.mktemp(request.param)
    write_pair(folder, request.param, "a", height=HEIGHT, width=WIDTH)
    model = segmenter(folder, request.param)
    model._reach = 40
    files = folder / "map.tif", folder / "chances.tif"
    predict(model, folder / "images" / "a.tif", files[0], probabilities=files[1], device="cpu", precision="fp32")
    recipe = recipe_for(folder, request.param)
    (area,) = whole(resolve(recipe.data.train, recipe.data, recipe.task).samples)
    scene, view = narrowed(area.sample.scene, [500.0] * 3, [50.0] * 3)
    return ShownMap("a", files[0], model.task, Window(0, 0, WIDTH, HEIGHT), scene, view, area, files[1]), model, area


def with_steps(step):
    """A budget of pixels that makes cells of this side."""
    return HEIGHT * WIDTH / step**2 if step > 1 else 10**6


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("side", [16, 2048])
def test_an_overview_holds_every_so_many_pixels_and_counts_all(case, monkeypatch, step, side):
    """Oracle: the map as rasterio reads it, and means with numpy, cell by cell."""
    shown, _, area = case
    monkeypatch.setattr(maps, "_READ", side)
    seen = overview(shown, with_steps(step))
    assert seen.step == step
    with rasterio.open(shown.path) as dataset:
        values, nodata = dataset.read(), dataset.nodata
    rows, columns = (np.minimum(np.arange(0, n, step) + step // 2, n - 1) for n in (HEIGHT, WIDTH))
    sampled = values[np.ix_(range(len(values)), rows, columns)]
    written = shown.task.map_values(
        np.where(seen.planes == IGNORE, 0, seen.planes), (seen.planes != IGNORE).all(axis=0)
    )
    np.testing.assert_array_equal(written, sampled)
    tile = area.sample.scene.read()
    truth = area.truth(area.sample.scene.grid.whole, tile.valid)
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
    for (name, plane, category), row in zip(shown.task.scored, shown.task.legend, strict=True):
        value = category if shown.task.planes > 1 else row["value"]
        assert seen.counts["pixels"][name] == (values[plane] == value).sum()
    a, b = seen.grid.transform @ (0, 0), seen.grid.transform @ (1, 1)
    assert a == (place("a"), 9_000_000)
    assert b == (place("a") + 10 * step, 9_000_000 - 10 * step)


def test_means_leave_out_what_is_no_data_whatever_it_holds():
    pixels = np.array([[[1, 3, 7], [900, 5, np.nan]]], np.float32)
    valid = np.array([[True, True, False], [False, True, True]])
    means, known = maps._means(pixels, valid, 2)
    np.testing.assert_array_equal(means, [[[3, np.nan]]])
    np.testing.assert_array_equal(known, [[True, True]])


def test_confidence_is_the_probability_of_what_was_decided(case):
    """Oracle: the task's own, of the model's probabilities."""
    shown, model, _ = case
    window = Window(3, 5, 40, 30)
    planes = shown.planes(window)
    with rasterio.open(shown.probabilities) as dataset:
        chances = dataset.read(window=window).astype(np.float32) * dataset.scales[0]
    valid = (planes != IGNORE).all(axis=0)
    expected = model.task.confidence(torch.from_numpy(chances)[None], torch.from_numpy(np.maximum(planes, 0))[None])[0]
    found = shown.confidence(window, planes)
    np.testing.assert_allclose(found[:, valid], expected[:, valid], atol=1e-6)
    assert np.isnan(found[:, ~valid]).all()
    assert valid.any()
    assert not valid.all()


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_background_without_a_band_has_what_the_highest_probability_leaves(tmp_path, head):
    task = Task("multiclass", [LandClass("water", 3), LandClass("forest", 9)], head=head)
    write_raster(tmp_path / "map.tif", np.array([[0, 3, 9, 255]], np.uint8), nodata=255)
    bands = [(0.25, 0.75), (0.5, 0.125), (0.125, 0.5), (0, 0)]
    names = ("water", "forest")
    if head == "softmax":
        bands, names = [(0.75, *each) for each in bands], ("background", *names)
    write_raster(tmp_path / "chances.tif", np.array(bands, np.float32).T[:, None])
    with rasterio.open(tmp_path / "chances.tif", "r+") as dataset:
        dataset.descriptions = names
    shown = ShownMap("x", tmp_path / "map.tif", task, Window(0, 0, 4, 1), probabilities=tmp_path / "chances.tif")
    planes = shown.planes(shown.window)
    none = 0.75 if head == "softmax" else 0.25
    np.testing.assert_array_equal(shown.confidence(shown.window, planes), [[[none, 0.5, 0.5, np.nan]]])


def test_a_part_of_a_map_is_what_all_of_it_is_there(case):
    shown, _, area = case
    part = ShownMap("part", shown.path, shown.task, Window(20, 11, 33, 40), shown.scene, shown.view, area)
    seen, all_of_it = overview(part, 10**6), overview(shown, 10**6)
    here = (slice(None), *part.window.toslices())
    np.testing.assert_array_equal(seen.planes, all_of_it.planes[here])
    np.testing.assert_array_equal(seen.truth, all_of_it.truth[here])
    np.testing.assert_array_equal(seen.pixels, all_of_it.pixels[here])
    assert seen.grid == all_of_it.grid.part(part.window)
    assert seen.confidence is None


def test_what_is_kept_of_a_run_is_what_prediction_writes(case, tmp_path):
    """Oracle: `segkit.predict` of the whole scene, of which validation has a part."""
    shown, model, area = case
    recipe = recipe_for(area.sample.scene.paths[0].parent.parent, shown.task.type)
    _, (validating,) = divide(recipe, [area.sample], ())
    with Kept(tmp_path, model) as kept:
        for part in Decider(model, FAST)(validating):
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


def test_what_was_not_finished_is_not_taken_for_a_map(case, tmp_path):
    _, model, area = case

    def stopped():
        with Kept(tmp_path, model) as kept:
            kept.add(area, next(Decider(model, FAST)(area)))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped()
    assert not list(tmp_path.iterdir())


def test_a_look_is_cut_from_map_labels_and_imagery(case):
    shown, _, area = case
    window = Window(0, 0, 30, 24)
    look = shown.look(Piece(area, window, 10, 1))
    tile = area.sample.scene.read(window)
    np.testing.assert_array_equal(look.planes, shown.planes(window))
    np.testing.assert_array_equal(look.truth, area.truth(window, (look.planes != IGNORE).any(axis=0)))
    np.testing.assert_array_equal(look.image, shown.view.image(tile.pixels, tile.valid))


def test_states_say_what_a_pixel_is():
    exclusive = Task("multiclass", [LandClass("water", 3, "#0000ff"), LandClass("dry_forest", 9, "#008000")])
    states = States()
    planes = np.array([[[0, 1, 2, IGNORE, 1]]], np.int16)
    found = states.of(planes, exclusive, np.array([[True, True, True, True, False]]))
    named = [state.name for state in states.states]
    assert named == ["background", "water", "dry forest"]
    assert found.tolist() == [[FIRST_STATE, FIRST_STATE + 1, FIRST_STATE + 2, NOT_KNOWN, NOTHING]]
    assert states.states[1].color == "#0000ff"
    assert [state.background for state in states.states] == [True, False, False]

    overlapping = Task("multilabel", [LandClass("water", 1, "#0000ff"), LandClass("forest", 2, "#00ff00")])
    states = States()
    planes = np.array([[[1, 1, 0, IGNORE, IGNORE]], [[0, 1, 0, 1, IGNORE]]], np.int16)
    found = states.of(planes, overlapping, np.ones((1, 5), bool))
    named = {place + FIRST_STATE: state.name for place, state in enumerate(states.states)}
    assert [named.get(place, place) for place in found[0].tolist()] == [
        "water", "water + forest", "none of the classes", "forest (others not known)", NOT_KNOWN
    ]  # fmt: skip
    assert {state.name: state.color for state in states.states}["water + forest"] == "#008080"


def test_a_scene_is_what_its_overview_is(case):
    shown, _, _ = case
    seen, states = overview(shown, 10**6), States()
    drawn = np.random.default_rng(0).random(seen.confidence.shape, np.float32)
    seen = replace(seen, confidence=np.where(np.isnan(seen.confidence), np.nan, drawn).astype(np.float32))
    found = scenery(shown, seen, states, "A note.")
    names = ["nothing", "not known", *(state.name for state in states.states)]
    for row, column in ((0, 0), (20, 30), (HEIGHT - 1, WIDTH - 1), (40, 70)):
        planes = seen.planes[:, row, column]
        said = names[found.decided[row, column]]
        if (planes == IGNORE).all():
            assert said == "nothing"
            assert np.isnan(found.confidence[row, column])
        else:
            there = [name for name, plane, category in shown.task.scored if planes[plane] == category]
            assert said == (" + ".join(there) or "none of the classes")
            assert found.confidence[row, column] == seen.confidence[:, row, column].min()
    assert found.note.startswith("A note.")
    assert set(found.polygons["class"]) <= {name for name, _, _ in shown.task.scored}
    assert found.polygons["mean_conf"].between(0, 1).all()
    assert found.image.shape == (HEIGHT, WIDTH, 3)


def test_polygons_from_afar_are_few_and_it_says_so(tmp_path, monkeypatch):
    task = Task("binary", [LandClass("cleared", 7)])
    file = write_raster(tmp_path / "map.tif", (7 * patches(HEIGHT, WIDTH, 0)).astype(np.uint8), nodata=255)
    shown = ShownMap("a", file, task, Window(0, 0, WIDTH, HEIGHT))
    monkeypatch.setattr(maps, "_MOST_POLYGONS", 1)
    near = scenery(shown, overview(shown, 10**6), States())
    assert len(near.polygons) == 1
    assert "the 1 largest of" in near.note
    monkeypatch.setattr(maps, "_MOST_POLYGONS", 10**6)
    far = scenery(shown, overview(shown, with_steps(3)), States())
    assert "One of 3 x 3 pixels" in far.note
    assert "less than 36 pixels" in far.note
    assert (far.polygons["pixels"] >= 36).all()


@pytest.mark.parametrize(("bands", "kept"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 3)), (224, (37, 112, 186))])
def test_only_the_bands_that_are_shown_are_read(tmp_path, bands, kept):
    random = np.random.default_rng(0)
    file = write_raster(tmp_path / "a.tif", random.normal(5, 1, (bands, 12, 14)).astype(np.float32))
    scene = Scene.of(file)
    part, view = narrowed(scene, tuple(range(bands)), (1.0,) * bands)
    assert part.bands == kept
    assert view.mean == tuple(band - 1 for band in kept)
    tile, all_of_it = part.read(), scene.read()
    from segkit.plots.images import View

    whole_view = View.of(scene.band_names, tuple(range(bands)), (1.0,) * bands)
    np.testing.assert_array_equal(
        view.image(tile.pixels, tile.valid), whole_view.image(all_of_it.pixels, all_of_it.valid)
    )
    assert narrowed(scene)[1] is None
