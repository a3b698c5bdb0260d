import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.windows import Window
from scipy.ndimage import maximum_filter
from synthetic import recipe_for, write_pair, write_raster

from segkit.data.sources import resolve
from segkit.data.split import Area, count_categories, pieces, read_pieces, split, whole
from segkit.errors import DataError
from segkit.raster import Tile
from segkit.recipe import Split
from segkit.task import IGNORE

HEIGHT, WIDTH = 70, 90
RULES = st.builds(
    Split,
    fraction=st.floats(0.05, 0.95),
    block=st.integers(9, 60),
    gap=st.integers(0, 40),
    seed=st.integers(0, 99),
)


def samples_in(folder, kind="multiclass"):
    recipe = recipe_for(folder, kind)
    return resolve(recipe.data.train, recipe.data, recipe.task).samples, recipe.task


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two scenes, the first with bands that hold row and column (counted from 1; 0 is no data)."""
    folder = tmp_path_factory.mktemp("two")
    write_pair(folder, "multiclass", "a", height=HEIGHT, width=WIDTH)
    write_pair(folder, "multiclass", "b", height=50, width=31, seed=1)
    for name, shape in (("a", (HEIGHT, WIDTH)), ("b", (50, 31))):
        coordinates = np.stack([*np.indices(shape), np.zeros(shape)]).astype(np.uint16) + 1
        write_raster(folder / "images" / f"{name}.tif", coordinates, nodata=0)
    return samples_in(folder)


def painted(windows, shape):
    count = np.zeros(shape, dtype=int)
    for window in windows:
        count[window.toslices()] += 1
    return count


def by_scene(areas):
    return {area.sample.scene.name: area for area in areas}


@given(rule=RULES)
@settings(max_examples=15, deadline=None)
def test_blocks_cover_every_scene_and_none_is_on_both_sides(two, rule):
    samples, task = two
    train, validation = (by_scene(side) for side in split(samples, task, rule))
    assert train
    assert validation
    for sample in samples:
        name, shape = sample.scene.name, sample.scene.grid.shape
        sides = [side[name].windows if name in side else () for side in (train, validation)]
        assert (painted(sides[0] + sides[1], shape) == 1).all()


@given(rule=RULES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_within_the_gap_of_validation_is_valid_or_known_in_training(two, rule):
    samples, task = two
    train, validation = split(samples, task, rule)
    held = by_scene(validation)
    for area in train:
        shape = area.sample.scene.grid.shape
        name = area.sample.scene.name
        forbidden = painted(held[name].windows, shape) if name in held else np.zeros(shape, dtype=int)
        forbidden = maximum_filter(forbidden, 2 * rule.gap + 1) > 0
        window = area.sample.scene.grid.whole
        tile, planes = area.sample.scene.read(window), area.labels.read(window)
        before = tile.valid.copy(), planes.copy()
        area.mask(tile, planes, window)
        np.testing.assert_array_equal(tile.valid, before[0] & ~forbidden)
        np.testing.assert_array_equal(planes, np.where(before[0] & ~forbidden, before[1], IGNORE))
        for read, known, _ in read_pieces([area], 13):
            rows, columns = (read.pixels[:2, read.valid] - 1).astype(int)
            assert not forbidden[rows, columns].any()
            assert (known[:, ~read.valid] == IGNORE).all()


@pytest.mark.parametrize("window", [Window(-20, -9, 64, 64), Window(30, 40, 64, 64), Window(85, 60, 8, 8)])
def test_a_mask_is_the_same_at_every_window(two, window):
    sample, beyond = two[0][0], 100
    hidden = Window(-5, 10, 30, 30), Window(60, 50, 100, 9)
    shifted = [Window(each.col_off + beyond, each.row_off + beyond, each.width, each.height) for each in hidden]
    expected = painted(shifted, (300, 300))[beyond + window.row_off :, beyond + window.col_off :] > 0
    shape = window.height, window.width
    tile, planes = Tile(np.zeros((1, *shape), np.float32), np.ones(shape, bool)), np.zeros((1, *shape), np.int16)
    Area(sample, (sample.scene.grid.whole,), hidden).mask(tile, planes, window)
    np.testing.assert_array_equal(tile.valid, ~expected[: window.height, : window.width])
    np.testing.assert_array_equal(planes[0], np.where(tile.valid, 0, IGNORE))


def shares(areas, task):
    return sum(count_categories(planes, task) for _, planes, _ in read_pieces(areas))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_a_class_of_two_blocks_is_on_both_sides(tmp_path, kind, seed):
    """Its nearest share to a tenth is none at all; but then nobody would know its score."""
    write_pair(tmp_path, kind, "a", height=96, width=96, seed=seed)
    labels = np.zeros((2 if kind == "multilabel" else 1, 96, 96), np.uint8)
    rare, common = (1, 1) if kind == "multilabel" else (9, 3)
    labels[0, 40:] = common
    for row, column in ((20, 5), (70, 80)):
        labels[-1, row : row + 4, column : column + 4] = rare
    write_raster(tmp_path / "labels" / "a.tif", labels)
    samples, task = samples_in(tmp_path, kind)
    for side in split(samples, task, Split(fraction=0.1, block=16, gap=0, seed=seed)):
        assert (shares(side, task) > 0).all()


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.8])
def test_validation_holds_about_the_wanted_fraction(tmp_path, fraction):
    write_pair(tmp_path, "binary", "a", height=160, width=160)
    samples, task = samples_in(tmp_path, "binary")
    train, validation = split(samples, task, Split(fraction=fraction, block=16, gap=0))
    held, kept = shares(validation, task), shares(train, task)
    np.testing.assert_allclose(held / (held + kept), fraction, atol=0.03)


def test_the_seed_alone_decides(two):
    def drawn(seed):
        return [
            (area.sample.scene.name, area.windows, area.hidden) for side in split(*two, rule(seed)) for area in side
        ]

    def rule(seed):
        return Split(block=16, gap=8, seed=seed)

    assert drawn(3) == drawn(3)
    assert len({str(drawn(seed)) for seed in range(5)}) > 1


def test_one_labelled_block_cannot_be_split(tmp_path):
    write_pair(tmp_path, "binary", "a")
    labels = np.full((96, 96), 255, np.uint8)
    labels[:8, 20:30] = 7
    labels[:10, :10] = 0  # where the image holds no data
    write_raster(tmp_path / "labels" / "a.tif", labels)
    samples, task = samples_in(tmp_path, "binary")
    with pytest.raises(
        DataError, match="1 blocks of 32 x 32 pixels hold valid pixels with known labels, a split needs two"
    ):
        split(samples, task, Split(block=32))


@given(size=st.integers(1, 50))
def test_pieces_cover_their_windows_once(size):
    windows = [Window(3, 5, 40, 21), Window(50, 0, 1, 33)]
    cut = list(pieces(windows, size))
    np.testing.assert_array_equal(painted(cut, (60, 60)), painted(windows, (60, 60)))
    assert all(piece.width <= size and piece.height <= size for piece in cut)


def test_whole_areas_hide_nothing(two):
    areas = whole(two[0])
    assert [area.windows for area in areas] == [(sample.scene.grid.whole,) for sample in two[0]]
    assert all(not area.hidden for area in areas)
