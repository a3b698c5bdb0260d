from itertools import product
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window
from scipy.ndimage import distance_transform_edt, maximum_filter
from synthetic import place, read_whole, recipe_for, write_pair, write_raster

from segkit.data.area import LabelledArea, count_categories, full_areas, iter_windows, read_tiles
from segkit.data.pairing import open_samples
from segkit.data.split import count_scene, resolve_split, spatial_split, train_val_split
from segkit.errors import DataError
from segkit.io.cover import PixelRegion
from segkit.io.grid import Grid
from segkit.io.scene import Tile
from segkit.recipe.schema import Recipe
from segkit.recipe.splits import SpatialSplit
from segkit.task import IGNORE

HEIGHT, WIDTH = 70, 90
RULES = st.builds(
    SpatialSplit,
    fraction=st.floats(0.05, 0.95),
    block=st.integers(9, 60),
    gap=st.integers(0, 40),
    seed=st.integers(0, 99),
)


def samples_in(folder, kind="multiclass"):
    recipe = recipe_for(folder, kind)
    return open_samples(recipe.data.train, recipe.data, recipe.task).samples, recipe.task


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two scenes, the first with bands that hold row and column (counted from 1; 0 is no data)."""
    folder = tmp_path_factory.mktemp("two")
    write_pair(folder, "multiclass", "a", height=HEIGHT, width=WIDTH)
    write_pair(folder, "multiclass", "b", height=50, width=31, seed=1)
    for name, shape in (("a", (HEIGHT, WIDTH)), ("b", (50, 31))):
        coordinates = np.stack([*np.indices(shape), np.zeros(shape)]).astype(np.uint16) + 1
        write_raster(folder / "images" / f"{name}.tif", coordinates, nodata=0, left=place(name))
    return samples_in(folder)


def painted(windows, shape):
    count = np.zeros(shape, dtype=int)
    for window in windows:
        count[window.toslices()] += 1
    return count


def by_scene(areas):
    return {area.sample.scene.name: area for area in areas}


@given(rule=RULES)
@settings(max_examples=15)
def test_blocks_cover_every_scene_and_none_is_on_both_sides(two, rule):
    samples, task = two
    train, validation = (by_scene(side) for side in spatial_split(samples, task, rule))
    assert train
    assert validation
    for sample in samples:
        name, shape = sample.scene.name, sample.scene.grid.shape
        sides = [side[name].windows if name in side else () for side in (train, validation)]
        assert (painted(sides[0] + sides[1], shape) == 1).all()


@given(rule=RULES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_training_masks_validation_and_the_gap(two, rule):
    samples, task = two
    train, validation = spatial_split(samples, task, rule)
    held = by_scene(validation)
    for area in train:
        shape = area.sample.scene.grid.shape
        name = area.sample.scene.name
        forbidden = painted(held[name].windows, shape) if name in held else np.zeros(shape, dtype=int)
        forbidden = maximum_filter(forbidden, 2 * rule.gap + 1) > 0
        window = area.sample.scene.grid.full_window
        tile, targets = area.sample.scene.read(window), area.labels.read(window)
        before = tile.valid.copy(), targets.copy()
        area.mask(tile, targets, window)
        np.testing.assert_array_equal(tile.valid, before[0] & ~forbidden)
        np.testing.assert_array_equal(targets, np.where(before[0] & ~forbidden, before[1], IGNORE))
        for read, known, _ in read_tiles([area], 13):
            rows, columns = (read.pixels[:2, read.valid] - 1).astype(int)
            assert not forbidden[rows, columns].any()
            assert (known[:, ~read.valid] == IGNORE).all()


@pytest.mark.parametrize("window", [Window(-20, -9, 64, 64), Window(30, 40, 64, 64), Window(85, 60, 8, 8)])
def test_a_mask_is_the_same_at_every_window(two, window):
    sample, beyond = two[0][0], 100
    exclude = Window(-5, 10, 30, 30), Window(60, 50, 100, 9)
    shifted = [Window(each.col_off + beyond, each.row_off + beyond, each.width, each.height) for each in exclude]
    expected = painted(shifted, (300, 300))[beyond + window.row_off :, beyond + window.col_off :] > 0
    shape = window.height, window.width
    tile, targets = Tile(np.zeros((1, *shape), np.float32), np.ones(shape, bool)), np.zeros((1, *shape), np.int16)
    LabelledArea(sample, (sample.scene.grid.full_window,), PixelRegion(exclude)).mask(tile, targets, window)
    np.testing.assert_array_equal(tile.valid, ~expected[: window.height, : window.width])
    np.testing.assert_array_equal(targets[0], np.where(tile.valid, 0, IGNORE))


def shares(areas, task):
    return sum(count_categories(targets, task) for _, targets, _ in read_tiles(areas))


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
    for side in spatial_split(samples, task, SpatialSplit(fraction=0.1, block=16, gap=0, seed=seed)):
        assert (shares(side, task) > 0).all()


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.8])
def test_validation_has_about_the_requested_fraction(tmp_path, fraction):
    write_pair(tmp_path, "binary", "a", height=160, width=160)
    samples, task = samples_in(tmp_path, "binary")
    train, validation = spatial_split(samples, task, SpatialSplit(fraction=fraction, block=16, gap=0))
    held, kept = shares(validation, task), shares(train, task)
    np.testing.assert_allclose(held / (held + kept), fraction, atol=0.03)


def test_the_seed_alone_decides(two):
    def drawn(seed):
        return [
            (area.sample.scene.name, area.windows, area.exclude)
            for side in spatial_split(*two, rule(seed))
            for area in side
        ]

    def rule(seed):
        return SpatialSplit(block=16, gap=8, seed=seed)

    assert drawn(3) == drawn(3)
    assert len({str(drawn(seed)) for seed in range(5)}) > 1


def test_one_labelled_block_cannot_be_split(tmp_path):
    write_pair(tmp_path, "binary", "a")
    labels = np.full((96, 96), 255, np.uint8)
    labels[:8, 20:30] = 7
    labels[:10, :10] = 0  # where the image holds no data
    write_raster(tmp_path / "labels" / "a.tif", labels)
    samples, task = samples_in(tmp_path, "binary")
    with pytest.raises(DataError, match="1 blocks of 32 x 32 pixels hold valid labelled pixels, a split needs 2"):
        spatial_split(samples, task, SpatialSplit(block=32, gap=0))


@given(size=st.integers(1, 50))
def test_iter_windows_covers_windows_once(size):
    windows = [Window(3, 5, 40, 21), Window(50, 0, 1, 33)]
    cut = list(iter_windows(windows, size))
    np.testing.assert_array_equal(painted(cut, (60, 60)), painted(windows, (60, 60)))
    assert all(piece.width <= size and piece.height <= size for piece in cut)


def test_full_areas_exclude_nothing(two):
    areas = full_areas(two[0])
    assert [area.windows for area in areas] == [(sample.scene.grid.full_window,) for sample in two[0]]
    assert all(not area.exclude for area in areas)


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five scenes, of which the last two show the same ground."""
    folder = tmp_path_factory.mktemp("five")
    for seed, name in enumerate("abcde"):
        write_pair(folder, "multiclass", name, height=48, width=64, seed=seed)
    for kind, suffix in (("images", 0), ("labels", None)):
        with rasterio.open(folder / kind / "e.tif") as file:
            pixels = file.read()
        write_raster(folder / kind / "e.tif", pixels, nodata=suffix, left=place("d") + 100)
    return folder


@pytest.mark.parametrize("by", ["scene", "block"])
@pytest.mark.parametrize("folds", [2, 4])
def test_folds_validate_everything_once_with_even_class_shares(five, by, folds):
    samples, task = samples_in(five)
    painted_over = {sample.scene.name: 0 for sample in samples}
    held = []
    for number in range(folds):
        rule = SpatialSplit(by=by, fold=f"{number}/{folds}", block=16, gap=0)
        train, validation = spatial_split(samples, task, rule)
        for area in validation:
            painted_over[area.sample.scene.name] += painted(area.windows, area.sample.scene.grid.shape)
        held.append(shares(validation, task))
        assert shares(train, task).sum() > 0
    assert all((times == 1).all() for times in painted_over.values())
    held = np.array(held, dtype=float)
    assert (held > 0).all()
    if by == "block":
        np.testing.assert_allclose(held / held.sum(axis=0), 1 / folds, atol=0.1)


def test_folds_depend_only_on_the_seed(five):
    samples, task = samples_in(five)

    def names(seed):
        return [
            [(area.sample.scene.name, area.windows) for area in spatial_split(samples, task, rule)[1]]
            for rule in (SpatialSplit(block=16, fold=f"{k}/3", gap=0, seed=seed) for k in range(3))
        ]

    assert names(1) == names(1)
    assert len({str(names(seed)) for seed in range(6)}) > 1


@pytest.mark.parametrize("folds", [2, 3, 4])
def test_overlapping_scenes_stay_together(five, folds):
    samples, task = samples_in(five)
    for seed, fold in product(range(4), range(folds)):
        rule = SpatialSplit(by="scene", fold=f"{fold}/{folds}", gap=0, seed=seed)
        sides = [{area.sample.scene.name for area in side} for side in spatial_split(samples, task, rule)]
        assert sides[0] | sides[1] == set("abcde")
        assert not sides[0] & sides[1]
        assert any({"d", "e"} <= side for side in sides)


@given(seed=st.integers(0, 50), gap=st.integers(0, 20))
@settings(max_examples=15)
def test_validation_ground_is_excluded_in_other_scenes(five, seed, gap):
    """The fifth scene lies ten pixels to the right of the fourth."""
    samples, task = samples_in(five)
    train, validation = spatial_split(samples, task, SpatialSplit(block=16, fraction=0.3, gap=gap, seed=seed))
    held, ground = by_scene(validation), np.zeros((48, 74), dtype=bool)
    for name, left in (("d", 0), ("e", 10)):
        if name in held:
            ground[:, left : left + 64] |= painted(held[name].windows, (48, 64)) > 0
    far = distance_transform_edt(~ground) if ground.any() else np.full(ground.shape, 99)
    trains = by_scene(train)
    for name, left in (("d", 0), ("e", 10)):
        if name in trains:
            area, apart = trains[name], far[:, left : left + 64]
            valid, own = read_whole(area)[0].valid, area.sample.scene.read(area.sample.scene.grid.full_window).valid
            assert not valid[apart <= gap].any()
            assert valid[own & (apart > gap * 1.5 + 1)].all()


def write_zones(path, shapes, **columns):
    frame = geopandas.GeoDataFrame(columns, geometry=list(shapes), crs="EPSG:32622").to_crs(4326)
    frame.to_file(path)
    return path


def zone(left, top, right, bottom, scene="a"):
    """Pixels of a scene as ground."""
    return shapely.box(place(scene) + 10 * left, 9e6 - 10 * bottom, place(scene) + 10 * right, 9e6 - 10 * top)


def test_polygons_are_chosen_by_a_field(five, tmp_path):
    samples, task = samples_in(five)
    shapes = [zone(5, 5, 25, 30), zone(30, 10, 60, 40), zone(8, 8, 40, 40, "c")]
    path = write_zones(tmp_path / "zones.gpkg", shapes, use=["val", "train", "test"])
    rule = SpatialSplit(by="polygon", polygons=str(path), field="use", values=("val", "test"), gap=3)
    train, validation = spatial_split(samples, task, rule)
    assert by_scene(validation).keys() == {"a", "c"}
    assert by_scene(train).keys() == set("abcde")
    for name, box in (("a", (5, 5, 25, 30)), ("c", (8, 8, 40, 40))):
        inside = np.zeros((48, 64), dtype=bool)
        inside[box[1] : box[3], box[0] : box[2]] = True
        area = by_scene(validation)[name]
        whole_scene = area.sample.scene.grid.full_window
        valid = area.sample.scene.read(whole_scene).valid
        every = area.labels.read(whole_scene)
        np.testing.assert_array_equal(area.read_truth(whole_scene, valid), np.where(inside & valid, every, IGNORE))
        np.testing.assert_array_equal(
            shares([area], task), count_categories(np.where(inside & valid, every, IGNORE), task)
        )
        tile, _, _ = read_whole(by_scene(train)[name])
        far = distance_transform_edt(~inside)
        assert not tile.valid[far <= 3 - 0.6].any()
        assert tile.valid[valid & (far > 3 + 1)].all()


def test_folds_of_polygons(five, tmp_path):
    samples, task = samples_in(five)
    shapes = [zone(4 + 12 * k, 12, 14 + 12 * k, 40, scene) for k in range(4) for scene in "ab"]
    path = str(write_zones(tmp_path / "zones.gpkg", shapes))
    held = [
        spatial_split(samples, task, SpatialSplit(by="polygon", polygons=path, fold=f"{k}/3", gap=0))[1]
        for k in range(3)
    ]
    everything = sum(shares(side, task) for side in held)
    apart = [shares(side, task) for side in held]
    assert all(side.sum() for side in apart)
    masks = np.zeros((2, 48, 64), dtype=bool)
    for k in range(4):
        masks[:, 12:40, 4 + 12 * k : 14 + 12 * k] = True
    expected = 0
    for mask, sample in zip(masks, samples, strict=False):
        window = sample.scene.grid.full_window
        known = np.where(mask & sample.scene.read(window).valid, sample.labels.read(window), IGNORE)
        expected = expected + count_categories(known, task)
    np.testing.assert_array_equal(everything, expected)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"field": "use", "values": ("nobody",)}, "no polygon on the training scenes has use nobody"),
        ({"field": "use", "values": ("a", "b")}, "every polygon on the training scenes has use a or b"),
        ({"field": "kind", "values": ("a",)}, "has no field 'kind'; its fields are use"),
        (
            {"layer": "other"},
            "has no layer 'other'; .* are zones; give one with data.val.layer",
        ),
        ({"fold": "0/3"}, "2 polygons of .* hold valid labelled pixels, a split needs 3"),
    ],
)
def test_polygons_that_cannot_be_used(five, tmp_path, rule, said):
    samples, task = samples_in(five)
    path = write_zones(tmp_path / "zones.gpkg", [zone(5, 5, 25, 30), zone(30, 10, 60, 40)], use=["a", "b"])
    with pytest.raises(DataError, match=said):
        spatial_split(samples, task, SpatialSplit(by="polygon", polygons=str(path), gap=0, **rule))


def test_polygons_elsewhere_are_an_error(five, tmp_path):
    samples, task = samples_in(five)
    path = write_zones(tmp_path / "zones.gpkg", [zone(-900, 5, -800, 30)])
    with pytest.raises(DataError, match="none of its 1 polygons intersects a training scene"):
        spatial_split(samples, task, SpatialSplit(by="polygon", polygons=str(path), gap=0))


def table_of(folder, use):
    lines = [f"{name},images/{name}.tif,labels/{name}.tif,{value}" for name, value in zip("abcde", use, strict=True)]
    (folder / "scenes.csv").write_text("\n".join(["name,image,label,use", *lines]))
    return recipe_for(folder, "multiclass", data={"train": {"table": str(folder / "scenes.csv")}})


def divided(recipe, **val):
    recipe = Recipe.from_dict(recipe.to_dict() | {"data": recipe.to_dict()["data"] | {"val": val or None}})
    samples = open_samples(recipe.data.train, recipe.data, recipe.task).samples
    return [sorted(area.sample.scene.name for area in side) for side in train_val_split(recipe, samples)]


def test_split_by_column(five):
    recipe = table_of(five, ["train", "val", "", "test", "train"])
    assert divided(recipe, column="use") == [["a", "d", "e"], ["b"]]
    assert divided(recipe, column="use", train=["train"], val=["val", "test"]) == [["a", "e"], ["b", "d"]]
    for val, said in (
        ({"column": "used"}, "no column 'used'; besides image and label its columns are use"),
        ({"column": "use", "val": ["dev"]}, "no validation row"),
        ({"column": "use", "train": ["dev"]}, "no training row"),
    ):
        with pytest.raises(DataError, match=said):
            divided(recipe, **val)


def test_validation_rows_are_excluded_from_training(five):
    """Scenes d and e share all but ten columns."""
    recipe = table_of(five, ["train", "train", "train", "val", "train"])
    raw = recipe.to_dict()
    raw["data"]["val"] = {"column": "use"}
    recipe = Recipe.from_dict(raw)
    train, _ = train_val_split(recipe, open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    valid = read_whole(by_scene(train)["e"])[0].valid
    assert not valid[:, :54].any()
    assert valid[:, 54:].all()


def test_without_validation_all_samples_are_for_training(five):
    raw = recipe_for(five, "multiclass", train={"checkpoint": "last"}).to_dict()
    raw["data"]["val"] = None
    recipe = Recipe.from_dict(raw)
    samples = open_samples(recipe.data.train, recipe.data, recipe.task).samples
    train, validation = train_val_split(recipe, samples)
    assert [area.windows for area in train] == [area.windows for area in full_areas(samples)]
    assert not any(area.exclude for area in train)
    assert validation == []


def test_the_default_gap_is_a_tile_but_at_most_a_quarter_of_a_block(five):
    samples = samples_in(five)[0]
    for block, gap, expected in ((16, None, 4), (128, None, 32), (16, 5, 5)):
        trial = recipe_for(five, "multiclass", data={"val": {"block": block, "gap": gap}})
        assert resolve_split(trial, samples).data.val.gap == expected
        train, validation = train_val_split(trial, samples)
        held, trains = by_scene(validation), by_scene(train)
        for name in (held.keys() & trains.keys()) - {"d", "e"}:
            assert trains[name].exclude == PixelRegion(held[name].windows).buffered(expected)


def scenes_of(*shapes):
    """Samples of which nothing but the grid is known, side by side."""
    return [
        SimpleNamespace(
            scene=SimpleNamespace(grid=Grid(*shape, Affine(10, 0, 1e5 * number, 0, -10, 0), CRS.from_epsg(32622)))
        )
        for number, shape in enumerate(shapes)
    ]


@settings(max_examples=40)
@given(
    shapes=st.lists(st.tuples(st.integers(48, 2000), st.integers(48, 2000)), min_size=1, max_size=3),
    tile=st.sampled_from([32, 64, 256, 512]),
    val=st.sampled_from([{}, {"fraction": 0.5}, {"fraction": 0.05}, {"fold": "0/5"}, {"gap": 8}]),
    seed=st.integers(0, 99),
)
def test_default_blocks_leave_pixels_on_both_sides(shapes, tile, val, seed):
    """Whatever so many blocks are drawn, most of them or few."""
    raw = recipe_for(Path(), "binary", train={"tile_size": tile}).to_dict()
    raw["data"]["val"] = val
    samples = scenes_of(*shapes)
    rule = resolve_split(Recipe.from_dict(raw), samples).data.val
    assert rule.block <= max(512, 4 * tile)
    assert rule.gap == 8 if "gap" in val else rule.gap <= min(tile, rule.block / 4)
    blocks = [(at, block) for at, one in enumerate(samples) for block in one.scene.grid.tiles(rule.block)]
    share = 1 / 5 if "fold" in val else val.get("fraction", 0.2)
    number = max(1, round(share * len(blocks)))
    assert 1 <= number < len(blocks)
    held = np.random.default_rng(seed).permutation(len(blocks)) < number
    left = 0
    for number, shape in enumerate(shapes):
        away = PixelRegion(tuple(block for (at, block), one in zip(blocks, held, strict=True) if one and at == number))
        left += int((~away.buffered(rule.gap).mask(Window(0, 0, *shape[::-1]))).sum())
    assert left


def test_large_scenes_have_large_blocks_and_a_gap_of_a_tile():
    for tile, block, gap in ((64, 512, 64), (128, 512, 128), (256, 1024, 256)):
        raw = recipe_for(Path(), "binary", train={"tile_size": tile}).to_dict()
        raw["data"]["val"] = {}
        rule = resolve_split(Recipe.from_dict(raw), scenes_of((9000, 9000))).data.val
        assert (rule.block, rule.gap) == (block, gap)


@pytest.mark.parametrize("by", ["scene", "polygon"])
def test_the_default_gap_of_scenes_and_polygons(five, tmp_path, by):
    samples = samples_in(five)[0]
    val = {"by": by}
    if by == "polygon":
        val["polygons"] = write_zones(tmp_path / "zones.gpkg", [zone(5, 5, 25, 25), zone(30, 10, 46, 26)])
    trial = recipe_for(five, "multiclass", train={"tile_size": 64})
    raw = trial.to_dict()
    raw["data"]["val"] = val
    gap = resolve_split(Recipe.from_dict(raw), samples).data.val.gap
    sides = [np.sqrt(np.prod(sample.scene.grid.shape)) for sample in samples] if by == "scene" else [20, 16]
    assert gap == np.sqrt(np.median(np.square(sides))) // 4


@pytest.mark.parametrize("val", [{"block": 16, "gap": 4}, {"by": "scene", "gap": 0}])
def test_counted_scenes_are_split_the_same(five, val):
    trial = recipe_for(five, "multiclass", data={"val": val})
    samples, task = samples_in(five)
    rule = SpatialSplit(**val)
    scene_counts = [count_scene(sample, task, rule, size=13) for sample in samples]
    given, read = spatial_split(samples, task, rule, scene_counts), spatial_split(samples, task, rule)
    for one, other in zip((*given[0], *given[1]), (*read[0], *read[1]), strict=True):
        assert (one.windows, one.exclude) == (other.windows, other.exclude)
    for sample, found in zip(samples, scene_counts, strict=True):
        (area,) = full_areas([sample])
        tile, targets, _ = read_whole(area)
        assert (found.valid, found.labelled) == (tile.valid.sum(), (targets != IGNORE).any(axis=0).sum())
        np.testing.assert_array_equal(found.counts.sum(axis=0), count_categories(targets, trial.task))
