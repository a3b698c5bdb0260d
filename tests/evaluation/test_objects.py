"""Objects against scipy's labels, whole and cut into strips of every height."""

import sys
from itertools import pairwise

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from reference import PATTERNS, spiral
from scipy import ndimage
from synthetic import write_raster

import segkit.evaluation.objects as module
from segkit.errors import GridError, UsageError
from segkit.evaluation.evaluate import evaluate
from segkit.evaluation.objects import Objects
from segkit.io.grid import Grid
from segkit.io.quantities import Quantity, parse_area
from segkit.task import IGNORE, LandCoverClass, Task
from segkit.vector.tracing.pixel_measures import fit_pixel_measures

A, B, C = (LandCoverClass(name, value) for value, name in enumerate("abc", 1))
TASKS = {
    "binary": Task("binary", (A,)),
    "background": Task("multiclass", (A, B)),
    "no background": Task("multiclass", (A, B, C), background=False),
    "overlapping": Task("multilabel", (A, B)),
}
EVERY = Quantity(1, pixels=True)


def brute(task, decided, truth, sizes, least):
    """The four counts of each scored category, from all pairs of regions; `sizes` (H, W) of the pixels."""
    found = np.zeros((len(task.scored_categories), 4), dtype=int)
    for at, (_, target, category) in enumerate(task.scored_categories):
        if task.allows_no_class and category == 0:
            continue
        known = truth[target] != IGNORE
        sides = []
        for layer in (decided, truth):
            label, count = ndimage.label((layer[target] == category) & known)
            sides.append([label == k for k in range(1, count + 1)])
        for column, (own, others) in zip((0, 2), (sides, sides[::-1]), strict=True):
            for one in own:
                if sizes[one].sum() >= least:
                    match = any(2 * (one & other).sum() > (one | other).sum() for other in others)
                    found[at, column : column + 2] += 1, match
    return found


def counted(task, decided, truth, size=EVERY, cuts=(), measures=None):
    found = Objects(task, size)
    height = truth.shape[1]
    for top, bottom in pairwise((0, *cuts, height)):
        found.add(decided[:, top:bottom], truth[:, top:bottom], measures, end=bottom == height)
    return found


@st.composite
def pictures(draw):
    """Noise, blocks with errors, or patterns; with what is not known."""
    task = TASKS[draw(st.sampled_from(sorted(TASKS)))]
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = len(task.categories)
    side = draw(st.sampled_from([1, 2, 3]))
    pattern = draw(st.sampled_from([None, None, "spiral", "checkerboard", "a comb", "a comb upside down"]))
    if pattern is None:
        height, width = draw(st.sampled_from([(1, 12), (12, 1), (7, 9), (12, 10), (1, 1)]))
        blocks = random.integers(0, kinds, (task.n_targets, -(-height // side), -(-width // side)))
    else:
        side = 1
        blocks = np.stack([PATTERNS[pattern] % 2] * task.n_targets)
        height, width = (side * size for size in blocks.shape[1:])
    truth = np.kron(blocks, np.ones((side, side), dtype=int))[:, :height, :width].astype(np.int16)
    wrong = random.random(truth.shape) < draw(st.sampled_from([0.02, 0.1, 0.5]))
    decided = np.where(wrong, random.integers(0, kinds, truth.shape), truth).astype(np.int16)
    if draw(st.booleans()):
        truth, decided = decided, truth
    truth = truth.copy()
    truth[random.random(truth.shape) < draw(st.sampled_from([0, 0.05, 1.0]))] = IGNORE
    return task, decided, truth, draw(st.sampled_from([1, 2, 5]))


@given(pictures(), st.sampled_from([1, 25]))
@settings(max_examples=100)
def test_counts_are_those_of_all_pairs_of_regions_whatever_the_strips(picture, at_once):
    task, decided, truth, least = picture
    expected = brute(task, decided, truth, np.ones(truth.shape[1:]), least)
    height = truth.shape[1]
    size = Quantity(least, pixels=True)
    for rows in {1, 2, 3, height}:
        found = counted(task, decided, truth, size, range(rows, height, rows))
        np.testing.assert_array_equal(found.counts, expected, f"strips of {rows}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_STRIP_PIXELS", at_once)
        np.testing.assert_array_equal(counted(task, decided, truth, size, (height // 2,)).counts, expected)


def test_a_perfect_map_has_1():
    truth = np.random.default_rng(0).integers(0, 3, (1, 40, 50)).astype(np.int16)
    truth[:, 10:12] = IGNORE
    found = counted(TASKS["background"], truth, truth).per_class()
    for name in ("a", "b"):
        scores = found[name]
        assert [scores[f"object_{key}"] for key in ("precision", "recall", "f1")] == [1, 1, 1]
        assert scores["objects"] == scores["objects_decided"] > 10
    assert set(found["background"].values()) == {None}


@pytest.mark.parametrize(("columns", "match"), [(5, 0), (6, 1), (10, 1), (19, 1), (20, 0)])
def test_an_iou_of_one_half_is_no_match(columns, match):
    """One object of 10 columns, of which some are found, or more than there are."""
    truth, decided = np.zeros((2, 1, 3, 30), dtype=np.int16)
    truth[..., :10] = 1
    decided[..., :columns] = 1
    scores = counted(TASKS["binary"], decided, truth).per_class()["a"]
    assert scores["object_precision"] == scores["object_recall"] == scores["object_f1"] == match


@pytest.mark.parametrize("swapped", [False, True])
def test_an_object_that_is_done_with_waits_for_parts_that_are_joined_below(swapped):
    """Two arms, joined in the last row, and a partner that ends above it; neither arm alone would match."""
    arms, bridge = np.zeros((2, 1, 7, 3), dtype=np.int16)
    arms[..., 0] = arms[..., 2] = arms[:, 6] = 1
    bridge[:, :5, 0] = bridge[:, :5, 2] = bridge[:, 0] = 1
    layers = (bridge, arms) if swapped else (arms, bridge)
    for rows in range(1, 8):
        assert counted(TASKS["binary"], *layers, cuts=range(rows, 7, rows)).counts[1].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("swapped", [False, True])
def test_an_object_that_is_done_with_waits_for_one_beside_a_large_one(swapped):
    """Two columns that go on, one of them wide, and an object over all of the narrow one and some of the other."""
    columns, over = np.zeros((2, 1, 7, 30), dtype=np.int16)
    columns[..., 0] = columns[..., 2:] = 1
    over[:, :5, 0] = over[:, 0, 0:3] = 1
    layers = (over, columns) if swapped else (columns, over)
    expected = brute(TASKS["binary"], *layers, np.ones((7, 30)), 1)
    assert sorted(expected[1].tolist()) == [1, 1, 1, 2]
    for rows in range(1, 8):
        found = counted(TASKS["binary"], *layers, cuts=range(rows, 7, rows))
        np.testing.assert_array_equal(found.counts, expected)


def test_an_object_that_is_cut_in_two_is_one_of_three_that_match():
    truth, decided = np.zeros((2, 1, 1, 20), dtype=np.int16)
    truth[..., :12] = 1
    decided[..., :12] = 1
    decided[..., 8] = 0  # 8 and 3 of 12 pixels
    scores = counted(TASKS["binary"], decided, truth).per_class()["a"]
    assert scores == {
        "object_precision": 1 / 2, "object_recall": 1, "object_f1": 2 / 3, "objects": 1, "objects_decided": 2
    }  # fmt: skip


def test_what_is_not_known_ends_an_object_of_either_side():
    """A bar of which the middle is not known is two, however it was decided there."""
    truth = np.ones((1, 1, 9), dtype=np.int16)
    truth[..., 4] = IGNORE
    scores = counted(TASKS["binary"], np.ones_like(truth), truth).per_class()["a"]
    assert (scores["objects"], scores["objects_decided"], scores["object_f1"]) == (2, 2, 1)


@pytest.mark.parametrize(("large", "small"), [("decided", "true"), ("true", "decided")])
def test_a_small_object_is_not_counted_but_may_be_the_partner_of_one_that_is(large, small):
    five, three = np.zeros((2, 1, 2, 8), dtype=np.int16)
    five[..., 0, :5] = three[..., 0, :3] = 1
    layers = {large: five, small: three}
    for least, large_count, small_count in ((3, 1, 1), (4, 1, 0), (5, 1, 0), (6, 0, 0)):
        scores = counted(TASKS["binary"], layers["decided"], layers["true"], parse_area(f"{least}px", "objects"))
        found = scores.per_class()["a"]
        counts = {"decided": found["objects_decided"], "true": found["objects"]}
        assert (counts[large], counts[small]) == (large_count, small_count)
        share = {"decided": found["object_precision"], "true": found["object_recall"]}
        assert share == {side: 1 if counts[side] else None for side in counts}
        assert found["object_f1"] == (1 if large_count else None)


def test_what_is_nowhere_has_no_score_and_what_is_missed_has_0():
    truth = np.zeros((1, 5, 5), dtype=np.int16)
    task = TASKS["background"]
    nothing = {"object_precision": None, "object_recall": None, "object_f1": None, "objects": 0, "objects_decided": 0}
    assert counted(task, truth, truth).per_class()["a"] == nothing
    assert counted(task, truth, np.full_like(truth, IGNORE)).per_class()["a"] == nothing
    missed = truth.copy()
    missed[:, 1:3] = 1
    assert counted(task, truth, missed).per_class()["a"] == nothing | {
        "object_recall": 0, "object_f1": 0, "objects": 1
    }  # fmt: skip


def test_sizes_on_the_ground_are_those_of_the_pixels_at_their_latitude():
    """Columns of equal bars from the equator to 80 degrees north, far beyond what fits into 32 bits."""
    grid = Grid(80, 12, Affine(1, 0, 5, 0, -1, 80), CRS.from_epsg(4326))
    truth = np.zeros((1, *grid.shape), dtype=np.int16)
    truth[:, ::2, 1:7] = 1
    decided = np.roll(truth, 1, axis=2)
    hectares, measures = grid.hectares(), fit_pixel_measures(grid)
    seen = set()
    for least in (1e6, 3.1e6, 5.3e6, 7e6):
        expected = brute(TASKS["binary"], decided, truth, hectares, least)
        for cuts in ((), range(1, 80), (7, 31)):
            found = counted(TASKS["binary"], decided, truth, parse_area(f"{least:.0f}ha", "objects"), cuts, measures)
            np.testing.assert_array_equal(found.counts, expected)
        seen.add(int(expected[1, 2]))
    assert len(seen) == 4


def test_scenes_add_up():
    """Of other widths, and nothing goes on from one to the next."""
    task, random = TASKS["no background"], np.random.default_rng(1)
    found, expected = Objects(task, EVERY), 0
    for shape in ((3, 8), (5, 4), (5, 4), (2, 11)):
        truth, decided = (random.integers(low, 3, (1, *shape)) for low in (IGNORE, 0))
        found.add(decided, truth, end=True)
        expected = expected + brute(task, decided, truth, np.ones(shape), 1)
    np.testing.assert_array_equal(found.counts, expected)


@pytest.mark.parametrize("turned", [False, True])
def test_a_comb_of_many_teeth_is_one_object(turned):
    """Below the strip's end some hundred of an object's runs meet one run."""
    comb = np.zeros((1, 6, 1025), dtype=np.int16)
    comb[..., ::2] = 1
    comb[:, 0] = comb[:, -1] = 1
    comb = comb[:, ::-1] if turned else comb
    for cuts in ((), (1,), (5,), range(1, 6)):
        assert counted(TASKS["binary"], comb, comb, cuts=cuts).counts[1].tolist() == [1, 1, 1, 1]


def test_arms_of_a_spiral_are_two_objects_or_one():
    truth = spiral(31).astype(np.int16)[None]
    for rows in (1, 4, 31):
        found = counted(TASKS["binary"], truth, truth, cuts=range(rows, 31, rows))
        assert found.counts[1].tolist() == [1, 1, 1, 1]


def test_pixels_do_not_overflow():
    """As if half of a scene had been some thousand million times as large."""
    truth = np.ones((1, 2, 4), dtype=np.int16)
    found = Objects(TASKS["binary"], EVERY)
    found.add(truth[:, :1], truth[:, :1], end=False)
    (target,) = found._targets
    target._pairs[module._COMMON] *= 2**32
    for layer in target._layers:
        layer.table[[module._PIXELS, module._SIZE]] *= 2**32
    found.add(truth[:, 1:], truth[:, 1:], end=True)
    assert found.counts[1].tolist() == [1, 1, 1, 1]


def test_memory_holds_what_reaches_into_the_last_row():
    random = np.random.default_rng(2)
    truth = random.integers(0, 3, (1, 500, 20))
    decided = np.where(random.random(truth.shape) < 0.1, 0, truth)
    found = Objects(TASKS["no background"], EVERY)
    for top in range(0, 500, 50):
        found.add(decided[:, top : top + 50], truth[:, top : top + 50], end=False)
        (target,) = found._targets
        # Runs of the last row, and for each of the other side's at most two that wait.
        assert max(layer.table.shape[1] for layer in target._layers) <= 60
        assert target._pairs.shape[1] <= 80
    assert found.counts.sum() > 2000


@pytest.fixture
def pair(tmp_path):
    """A map of 60 x 60 pixels of 10 m, and its truth, of which some is not known."""
    truth, found = np.ones((2, 60, 60), dtype=np.uint8)
    for top, left, size in ((2, 2, 10), (20, 2, 10), (40, 2, 4), (2, 30, 3)):
        truth[top : top + size, left : left + size] = 2
    found[2:12, 2:12] = 2  # found
    found[20:30, 9:19] = 2  # found elsewhere
    found[40:43, 2:6] = 2  # found, mostly
    found[50, ::3] = 2  # 20 specks, of which the unknown rim hides one
    truth[:, 57:] = 255
    write_raster(tmp_path / "map.tif", found)
    write_raster(tmp_path / "truth.tif", truth)
    (tmp_path / "names.csv").write_text("value,name,background\n1,rest,yes\n2,clearing,no\n")
    return tmp_path


@pytest.mark.parametrize("strip", [60, 600, 2**22])
@pytest.mark.parametrize(
    ("objects", "said", "decided", "true"),
    [
        ("1px", "1px", (2, 22), (2, 4)),
        ("10px", "10px", (2, 3), (2, 3)),
        ("0.13ha", "0.13ha", (1, 2), (2, 3)),
        ("5000m2", "0.5ha", (1, 2), (1, 2)),
    ],
)
def test_a_map_against_labels(pair, monkeypatch, strip, objects, said, decided, true):
    """Of those that count, how many match."""
    monkeypatch.setattr(sys.modules["segkit.evaluation.evaluate"], "_STRIP_PIXELS", strip)
    options = {"class_names": pair / "names.csv", "ignore": [255]}
    result = evaluate(pair / "map.tif", None, pair / "truth.tif", min_object_area=objects, **options)
    assert result["object_size"] == said
    scores = result["per_class"]["clearing"]
    assert (scores["objects_decided"], scores["objects"]) == (decided[1], true[1])
    assert scores["object_precision"] == pytest.approx(decided[0] / decided[1])
    assert scores["object_recall"] == pytest.approx(true[0] / true[1])
    assert scores["object_f1"] == pytest.approx((decided[0] + true[0]) / (decided[1] + true[1]))
    assert scores["boundary_f1"] > 0
    assert result["per_class"]["background"]["object_f1"] is None


def test_sizes_that_mean_nothing_are_reported(pair):
    options = {"class_names": pair / "names.csv", "ignore": [255]}
    with pytest.raises(UsageError, match=r"minimum object area 3: has no unit; write 0\.5ha"):
        evaluate(pair / "map.tif", None, pair / "truth.tif", min_object_area="3", **options)
    for name in ("map.tif", "truth.tif"):
        with rasterio.open(pair / name) as file:
            codes = file.read()
        write_raster(pair / name, codes, crs=None)
    with pytest.raises(GridError, match="without a CRS there are no true areas"):
        evaluate(pair / "map.tif", None, pair / "truth.tif", min_object_area="1ha", **options)
