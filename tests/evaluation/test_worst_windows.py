import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rasterio.windows import Window
from synthetic import recipe_for, segmenter, write_pair, write_raster

from segkit.data.area import full_areas
from segkit.data.pairing import open_samples
from segkit.evaluation.decisions import ModelPredictor, PredictedBlock
from segkit.evaluation.evaluate import score_areas
from segkit.evaluation.metrics import Confusion
from segkit.evaluation.worst_windows import WindowRanking, draw_worst_windows, find_worst_windows
from segkit.inference.settings import PredictOptions
from segkit.task import IGNORE

FAST = PredictOptions(device="cpu", precision="fp32", tile=64, overlap=8)


def areas_of(folder, kind):
    recipe = recipe_for(folder, kind)
    return full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)


def maps(predictor, areas):
    """Decisions and truth of each whole area, put together: int16 (T, H, W)."""
    for area in areas:
        shape = area.labels.task.n_targets, *area.sample.scene.grid.shape
        targets, truth = np.full((2, *shape), IGNORE, dtype=np.int16)
        for part in predictor(area):
            assert (truth[:, *part.window.toslices()] == IGNORE).all()  # nothing comes twice
            targets[:, *part.window.toslices()], truth[:, *part.window.toslices()] = part.decided, part.truth
        yield targets, truth


@pytest.fixture(scope="module", params=["binary", "multiclass", "multilabel"])
def case(request, tmp_path_factory):
    """Areas, an untrained model, and what it decides: (decided, truth) of each area."""
    folder = tmp_path_factory.mktemp(request.param)
    for seed, (name, height, width) in enumerate([("a", 96, 80), ("b", 64, 100)]):
        write_pair(folder, request.param, name, height=height, width=width, seed=seed)
    model, areas = segmenter(folder, request.param), areas_of(folder, request.param)
    model._receptive_field = 40  # takes a second to measure
    return areas, model, list(maps(ModelPredictor(model, FAST), areas))


def test_decisions_are_those_that_are_scored(case):
    areas, model, found = case
    counted = Confusion(model.task)
    for targets, truth in found:
        counted.add(targets, truth)
    scores = score_areas(ModelPredictor(model, FAST), areas, [None, None])
    assert scores | {"ece": None} == counted.summary() | {"ece": None, "scenes": scores["scenes"]}


def test_parts_of_an_area_are_decided_as_all_of_it(case):
    areas, model, found = case
    predictor = ModelPredictor(model, FAST)
    for area, (targets, truth) in zip(areas, found, strict=True):
        here = np.zeros(truth.shape[1:], dtype=bool)
        windows = [Window(5, 3, 20, 30), Window(40, 33, 31, 17)]
        for window in windows:
            here[window.toslices()] = True
        again, seen = np.full((2, *truth.shape), IGNORE, dtype=np.int16)
        for part in predictor(area, windows):
            again[:, *part.window.toslices()], seen[:, *part.window.toslices()] = part.decided, part.truth
        np.testing.assert_array_equal(seen, np.where(here, truth, IGNORE))
        np.testing.assert_array_equal(
            again[:, here & (truth != IGNORE).all(axis=0)], targets[:, here & (truth != IGNORE).all(axis=0)]
        )


def test_the_worst_windows_are_those_of_brute_force(case):
    areas, model, found = case
    expected = []
    for area, (targets, truth) in zip(areas, found, strict=True):
        for window in area.sample.scene.grid.tiles(24):
            known = truth[:, *window.toslices()] != IGNORE
            wrong = known & (truth != targets)[:, *window.toslices()]
            expected.append((area, window, int(known.sum()), int(wrong.sum())))
    most = max(known for _, _, known, _ in expected)
    ranked = sorted((each for each in expected if each[2] >= most / 4), key=lambda each: -each[3] / each[2])
    ranked_windows = find_worst_windows(ModelPredictor(model, FAST), areas, 5, 24)
    assert [
        (ranked_window.area, ranked_window.window, ranked_window.labelled, ranked_window.wrong)
        for ranked_window in ranked_windows
    ] == ranked[:5]
    assert ranked_windows[0].error_rate > ranked_windows[-1].error_rate > 0
    assert len(expected) > len(ranked) > 5  # the corner without data has too few


def test_the_best_windows_are_those_of_brute_force_and_not_all_of_one_kind(case):
    areas, model, found = case
    expected = []
    for area, (targets, truth) in zip(areas, found, strict=True):
        for window in area.sample.scene.grid.tiles(24):
            here = truth[:, *window.toslices()]
            known = here != IGNORE
            wrong = int((known & (here != targets[:, *window.toslices()])).sum())
            one_kind = all(len(np.unique(target[target != IGNORE])) < 2 for target in here)
            expected.append((area, window, int(known.sum()), wrong, one_kind))
    most = max(known for _, _, known, _, _ in expected)
    enough = [each for each in expected if each[2] >= most / 4]
    ranked = sorted(enough, key=lambda each: (each[4], each[3] / each[2]))
    ranking = WindowRanking(24)
    for area in areas:
        for part in ModelPredictor(model, FAST)(area):
            ranking.add(area, part)
    ranked_windows = ranking.best(len(enough) + 1)
    assert [
        (ranked_window.area, ranked_window.window, ranked_window.labelled, ranked_window.wrong)
        for ranked_window in ranked_windows
    ] == [each[:4] for each in ranked]
    assert ranking.worst(3) == find_worst_windows(ModelPredictor(model, FAST), areas, 3, 24)


def test_a_window_of_one_kind_is_not_called_best_while_there_are_others(tmp_path):
    truth = np.zeros((64, 64), dtype=np.uint8)
    truth[:32, :32][:16] = 1  # the first window has both, decided half right; the others are background, all right
    write_raster(tmp_path / "images" / "a.tif", np.full((1, 64, 64), 5, np.float32))
    write_raster(tmp_path / "labels" / "a.tif", 7 * truth)
    (area,) = areas_of(tmp_path, "binary")
    ranking = WindowRanking(32)
    window = area.sample.scene.grid.full_window
    valid = np.ones((64, 64), dtype=bool)
    ranking.add(area, PredictedBlock(window, np.zeros((1, 64, 64), np.int16), area.read_truth(window, valid), valid))
    assert [ranked_window.error_rate for ranked_window in ranking.best(4)] == [0.5, 0, 0, 0]


@pytest.mark.parametrize("count", [1, 3])
def test_a_row_for_each_window(case, tmp_path, monkeypatch, count):
    areas, model, _ = case
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **how: (drawn.append(figure), save(figure, *args, **how))
    )
    draw_worst_windows(ModelPredictor(model, FAST), areas, tmp_path / "one.png", count, 24)
    draw_worst_windows(ModelPredictor(model, FAST), areas, tmp_path / "two.png", count, 24)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    panels = [ax for ax in drawn[0].axes if ax.images]
    assert len(panels) == 4 * count
    assert [ax.get_title() for ax in panels[:4]] == ["image", "truth", "prediction", "errors and their confidence"]
    for ranked_window, ax in zip(
        find_worst_windows(ModelPredictor(model, FAST), areas, count, 24), panels[::4], strict=True
    ):
        label = ax.get_ylabel()
        assert label.startswith(ranked_window.area.sample.scene.name)
        assert f"rows {ranked_window.window.row_off}-" in label
        assert f"columns {ranked_window.window.col_off}-" in label
        assert f"{1 - ranked_window.error_rate:.1%} correct" in label
        assert f"{ranked_window.labelled:,} px labelled" in label
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png"}


@pytest.mark.parametrize("bands", [1, 2, 224])
def test_any_number_of_bands(tmp_path, bands):
    random = np.random.default_rng(0)
    write_raster(tmp_path / "images" / "a.tif", random.normal(500, 30, (bands, 40, 48)).astype(np.float32))
    write_raster(tmp_path / "labels" / "a.tif", (7 * random.integers(0, 2, (40, 48))).astype(np.uint8))
    model = segmenter(tmp_path, bands=bands)
    model._receptive_field = 40
    draw_worst_windows(ModelPredictor(model, FAST), areas_of(tmp_path, "binary"), tmp_path / "worst.png", 2, 32)
    assert imread(tmp_path / "worst.png").ndim == 3


def test_nothing_known_is_a_picture_too(tmp_path):
    write_pair(tmp_path, "binary", "a", height=32, width=32)
    write_raster(tmp_path / "labels" / "a.tif", np.full((32, 32), 255, np.uint8))
    model = segmenter(tmp_path)
    model._receptive_field = 40
    draw_worst_windows(ModelPredictor(model, FAST), areas_of(tmp_path, "binary"), tmp_path / "worst.png")
    assert (tmp_path / "worst.png").read_bytes().startswith(b"\x89PNG")
