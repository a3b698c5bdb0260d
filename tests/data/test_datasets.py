import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window
from scipy.ndimage import maximum_filter
from synthetic import place, read_whole, recipe_for, write_pair, write_raster
from torch.utils.data import DataLoader

from segkit.data.area import LabelledArea, full_areas
from segkit.data.augmentation import Augmentation
from segkit.data.datasets import AreaReaders, EpochSampler, TrainDataset, min_tile_size
from segkit.data.pairing import open_samples
from segkit.data.split import spatial_split
from segkit.errors import DataError
from segkit.io.cover import PixelRegion
from segkit.recipe.splits import SpatialSplit
from segkit.task import IGNORE

SIZE = 16
SHAPES = {"a": (40, 50), "b": (9, 30)}  # the second is smaller than a tile along one side


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two scenes whose bands hold scene, row and column, counted from 1; their labels are sparse."""
    folder = tmp_path_factory.mktemp("tiles")
    for number, (name, shape) in enumerate(SHAPES.items()):
        write_pair(folder, "multiclass", name, height=shape[0], width=shape[1], seed=number)
        coordinates = np.stack([np.full(shape, number), *np.indices(shape)]).astype(np.uint16) + 1
        coordinates[:, :10, :10] = 0
        write_raster(folder / "images" / f"{name}.tif", coordinates, nodata=0, left=place(name))
        labels = np.where(np.random.default_rng(number).random(shape) < 0.01, 3, 255).astype(np.uint8)
        labels[-1, -1] = 9
        write_raster(folder / "labels" / f"{name}.tif", labels, left=place(name))
    recipe = recipe_for(folder, "multiclass")
    return open_samples(recipe.data.train, recipe.data, recipe.task).samples, recipe.task


def known_pixels(areas):
    """(scene, row, column) of every pixel that counts, from whole reads."""
    found = set()
    for area in areas:
        place = list(SHAPES).index(area.sample.scene.name)
        _, targets, include = read_whole(area)
        found |= {(place, *where) for where in np.argwhere(include & (targets[0] != IGNORE)).tolist()}
    return found


def places(pixels, where):
    return [tuple(one) for one in (pixels[:, where].T.astype(int) - 1).tolist()]


def same(one, other):
    return all(np.array_equal(mine, theirs, equal_nan=True) for mine, theirs in zip(one, other, strict=True))


def as_arrays(item):
    return [part.numpy() for part in item]


@pytest.fixture(scope="module")
def areas(made):
    return full_areas(made[0])


def test_a_crop_is_the_same_in_any_order_and_process(areas):
    augmentation = Augmentation("default", (1, 20, 20), (1, 10, 10))
    numbers = list(range(24))
    tiles = TrainDataset(areas, SIZE, augmentation, seed=5)
    straight = [as_arrays(tiles[number]) for number in numbers]
    again = TrainDataset(areas, SIZE, augmentation, seed=5)
    for number in reversed(numbers):
        assert same(as_arrays(again[number]), straight[number])
    loader = DataLoader(tiles, batch_size=1, sampler=numbers, num_workers=2)
    for number, batch in zip(numbers, loader, strict=True):
        assert same([part[0] for part in as_arrays(batch)], straight[number])


def test_a_forked_worker_opens_its_own_files(areas, monkeypatch):
    """With a file handle, processes share the place where it is read next."""
    readers = AreaReaders(areas)
    own = readers[0]
    assert readers[0] is own
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert readers[0] is not own


def test_numbers_and_seeds_give_different_crops(areas):
    crops = [as_arrays(TrainDataset(areas, SIZE, None, seed)[number]) for seed in range(4) for number in range(4)]
    assert sum(same(one, other) for one in crops for other in crops) < 2 * len(crops)


def test_crops_show_every_labelled_pixel_and_none_is_unlabelled(areas):
    tiles, seen = TrainDataset(areas, SIZE, None, 0), set()
    for number in range(400):
        pixels, valid, targets = as_arrays(tiles[number])
        assert pixels.shape == (3, SIZE, SIZE)
        known = targets[0] != IGNORE
        assert known.any()
        assert valid[known].all()
        seen |= set(places(pixels, known))
    assert seen == known_pixels(areas)
    assert tiles.pixels == len(seen)


def test_a_crop_is_inside_the_scene_or_contains_it(areas):
    tiles = TrainDataset(areas, SIZE, None, 1)
    for number in range(60):
        pixels, valid, _ = as_arrays(tiles[number])
        within = np.argwhere(valid)[0]
        scene, *place = places(pixels, valid)[0]
        for origin, extent in zip(place - within, list(SHAPES.values())[scene], strict=True):
            assert min(0, extent - SIZE) <= origin <= max(0, extent - SIZE)


@pytest.mark.parametrize("size", [8, 31])
@pytest.mark.parametrize("seed", range(3))
def test_no_crop_shows_a_pixel_near_validation(made, size, seed):
    samples, task = made
    gap = 3
    train, validation = spatial_split(samples, task, SpatialSplit(fraction=0.3, block=12, gap=gap, seed=seed))
    forbidden = {name: np.zeros(shape, dtype=bool) for name, shape in SHAPES.items()}
    for area in validation:
        for window in area.windows:
            forbidden[area.sample.scene.name][window.toslices()] = True
    forbidden = [maximum_filter(mask, 2 * gap + 1) for mask in forbidden.values()]
    tiles = TrainDataset(train, size, Augmentation("geometric", (0, 0, 0), (1, 1, 1)), seed)
    for number in range(60):
        pixels, valid, targets = as_arrays(tiles[number])
        assert not any(forbidden[scene][row, column] for scene, row, column in places(pixels, valid))
        assert (targets[:, ~valid] == IGNORE).all()


def one_class_is_rare(folder, kind):
    """A scene in which a hundredth is of one class, in patches far apart, and its samples."""
    write_pair(folder, kind, "a", height=200, width=200)
    labels = np.zeros((2 if kind == "multilabel" else 1, 200, 200), np.uint8)
    labels[0, :, :80] = 1 if kind == "multilabel" else 3
    labels[-1, 20:40, 180:200] = 1 if kind == "multilabel" else 9
    write_raster(folder / "labels" / "a.tif", labels)
    write_raster(folder / "images" / "a.tif", np.ones((3, 200, 200), np.uint8))
    recipe = recipe_for(folder, kind)
    return list(open_samples(recipe.data.train, recipe.data, recipe.task).samples), recipe.task


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_categories_are_drawn_with_their_weights(tmp_path, kind):
    """Oracle: the share of a pixel's category, summed over the pixels of each cell, one by one."""
    samples, task = one_class_is_rare(tmp_path, kind)
    targets = samples[0].labels.read(samples[0].scene.grid.full_window)
    counts = [np.bincount(target.ravel(), minlength=len(task.categories)) for target in targets]
    share = np.concatenate(counts) / np.sum(counts)
    for class_balanced_sampling in (0.0, 0.5, 1.0):
        tiles = TrainDataset(full_areas(samples), SIZE, None, 0, class_balanced_sampling=class_balanced_sampling)
        pixel = sum(
            (share[target * len(task.categories) + each]) ** -class_balanced_sampling
            for target, each in enumerate(targets)
        )
        cells = [pixel[cell.toslices()].sum() for _, cell in tiles._cells]
        np.testing.assert_allclose(np.diff(tiles._cumulative, prepend=0), np.array(cells) / np.sum(cells))
    if kind == "multiclass":
        # Every category alike: a third of the drawn cells hold the rare class, a hundredth of the area.
        rare = [(targets[0][cell.toslices()] == 2).any() for _, cell in tiles._cells]
        assert 0.33 < np.diff(tiles._cumulative, prepend=0)[rare].sum() < 0.45


def test_a_scene_of_double_weight_is_drawn_twice_as_often(made):
    samples = made[0]
    alike, doubled = (
        TrainDataset(full_areas([samples[0], replace(samples[1], weight=weight)]), SIZE, None, 0)
        for weight in (1.0, 2.0)
    )
    second = [place == 1 for place, _ in alike._cells]
    odds = [
        share / (1 - share)
        for tiles in (alike, doubled)
        for share in [np.diff(tiles._cumulative, prepend=0)[second].sum()]
    ]
    assert odds[1] == pytest.approx(2 * odds[0])
    assert alike.pixels == doubled.pixels


def test_areas_without_labels_are_refused(areas):
    empty = LabelledArea(areas[0].sample, areas[0].windows, PixelRegion((Window(0, 0, 99, 99),)))
    with pytest.raises(DataError, match="no pixel of the training areas is both valid and labelled"):
        TrainDataset([empty], SIZE, None, 0)


@given(crops=st.integers(1, 40), world=st.integers(1, 5), epochs=st.integers(1, 4))
def test_no_number_is_drawn_twice(crops, world, epochs):
    drawn = []
    for rank in range(world):
        sampler = EpochSampler(crops, rank, world)
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            numbers = list(sampler)
            assert len(numbers) == len(sampler)
            assert all(epoch * crops <= number < (epoch + 1) * crops for number in numbers)
            drawn += numbers
    assert sorted(drawn) == list(range(crops * epochs))


@given(stride=st.sampled_from([1, 2, 8, 16, 32]))
def test_the_smallest_tile_has_four_strides_unless_scenes_are_smaller(areas, stride):
    least = min_tile_size(stride, areas)  # the largest side of these scenes is 50
    assert least % stride == 0
    assert least == 4 * stride or 50 <= least < 50 + stride
    assert least <= 4 * stride
