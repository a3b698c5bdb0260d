"""Split samples into training and validation areas that share no ground."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.appearance import describe_appearance
from segkit.data.area import POLYGON_WINDOW_PX, LabelledArea, count_categories, full_areas, read_tiles
from segkit.data.assignment import choose_validation, join_values
from segkit.data.band_values import BandRanges
from segkit.data.pairing import Sample
from segkit.data.point_groups import PointGroup, group_points
from segkit.data.statistics import BandMoments
from segkit.errors import DataError, GridError
from segkit.io.cover import PixelRegion, grids_within
from segkit.io.grid import Grid, split_window
from segkit.io.polygons import project_to_grid, read_polygons
from segkit.recipe.schema import Recipe
from segkit.recipe.splits import SpatialSplit, TableSplit
from segkit.task import IGNORE, CoOccurrence, Task

# Default blocks: largest side (or four tiles), smallest side, and number of blocks that should validate.
_MAX_BLOCK_PX, _MIN_BLOCK_PX, _MIN_VAL_BLOCKS = 512, 8, 3
_BY_SHAPES = ("polygon", "point")  # splits whose units are not made up of windows
# The appearance of a scene is that of about this many of its pixels, in every n-th row and column.
_APPEARANCE_PIXELS = 2**18


@dataclass(frozen=True)
class SceneCounts:
    """Pixel counts of a scene.

    Parameters
    ----------
    valid, labelled
        Pixels with data; those of them with a label.
    counts
        int64 (windows, T * K): labelled pixels of each category of each target, in each block of the split, or in the
        whole scene if the split has no blocks.
    moments
        Mean and standard deviation of the bands over a sample of the valid pixels: how the scene looks.
    ranges
        Minimum, mean and maximum of the bands over all valid pixels.
    together
        How often overlapping classes share a pixel.
    """

    valid: int
    labelled: int
    counts: NDArray[np.int64]
    moments: BandMoments
    ranges: BandRanges
    together: CoOccurrence


def count_scene(
    sample: Sample,
    task: Task,
    rule: object,
    *,
    size: int = 1024,
    advance: Callable[[float], None] = lambda pixels: None,
) -> SceneCounts:
    """Read a scene once, count its pixels (of each block if it is to be split into blocks), and see how it looks.

    Parameters
    ----------
    rule
        `data.val` of a recipe that `resolve_split` returned.
    size
        Side in pixels of the windows that are read at once.
    advance
        Called with the number of pixels of each window.
    """
    (area,) = full_areas([sample])
    windows = _count_windows(sample.scene.grid, rule)
    counts = np.zeros((len(windows), task.n_targets * len(task.categories)), dtype=np.int64)
    valid_pixels = labelled = 0
    moments, ranges = BandMoments(len(sample.scene.bands)), BandRanges(len(sample.scene.bands))
    together = CoOccurrence(task)
    step = math.isqrt(sample.scene.grid.height * sample.scene.grid.width // _APPEARANCE_PIXELS) or 1
    with sample.scene.open() as reader:
        for number, window in enumerate(windows):
            for part in split_window(window, size):
                tile = reader.read(part)
                valid = tile.valid
                targets = area.read_truth(part, valid)
                moments.add(tile.pixels[:, ::step, ::step], valid[::step, ::step])
                ranges.add(tile.pixels, valid)
                valid_pixels += int(valid.sum())
                labelled += int((targets != IGNORE).any(axis=0).sum())
                counts[number] += count_categories(targets, task)
                if task.n_targets > 1:
                    together.add(targets)
                advance(part.height * part.width)
    return SceneCounts(valid_pixels, labelled, counts, moments, ranges, together)


def _count_windows(grid: Grid, rule: object) -> list[Window]:
    """Return the windows of a scene that are counted separately."""
    if isinstance(rule, SpatialSplit) and rule.by == "block":
        assert rule.block is not None
        return list(grid.tiles(rule.block))
    return [grid.full_window]


def resolve_split(recipe: Recipe, training: Sequence[Sample]) -> Recipe:
    """Return the recipe with the block and gap of its split, if it leaves them open.

    The default block is 512 pixels wide, or four tiles, and is halved until there are enough blocks that three validate
    (and three train). The default gap is a tile, but at most a quarter of the side of a unit of the split: a block, a
    typical scene, a typical polygon; or of the distance of groups of points. So a block whose neighbours all validate
    still has training pixels in its middle.

    Raises
    ------
    DataError
        The polygons cannot be used.
    """
    rule = recipe.data.val
    if not isinstance(rule, SpatialSplit) or not training:
        return recipe
    grids, tile_size = [sample.scene.grid for sample in training], recipe.train.tile_size
    block, gap = rule.block, rule.gap
    if rule.by == "block" and block is None:
        block = _default_block(grids, rule, tile_size)
    if gap is None:
        gap = min(tile_size, max(1, _side_of_units(grids, rule, block) // 4))
    resolved = rule.model_copy(update={"block": block, "gap": gap})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"val": resolved})})


def _default_block(grids: Sequence[Grid], rule: SpatialSplit, tile_size: int) -> int:
    """Return the side in pixels of the blocks of a split that does not give it."""
    share = rule.fraction if rule.fold is None else 1 / int(rule.fold.partition("/")[2])
    pixels = sum(grid.height * grid.width for grid in grids)
    min_blocks = _MIN_VAL_BLOCKS / min(share, 1 - share)
    # Blocks must be wider than a gap that is given.
    smallest = max(_MIN_BLOCK_PX, min(2 * (rule.gap or 0), math.isqrt(pixels) // 2))
    block = max(_MAX_BLOCK_PX, 4 * tile_size)
    while block // 2 >= smallest and pixels < min_blocks * block**2:
        block //= 2
    return block


def _side_of_units(grids: Sequence[Grid], rule: SpatialSplit, block: int | None) -> int:
    """Return the side in pixels of the units of a split: of a square with their median area."""
    if rule.by == "block":
        assert block is not None
        return block
    if rule.by == "point":
        assert rule.distance is not None
        if any(grid.crs is None for grid in grids):
            raise GridError("data.val.distance is in metres, but a scene has no CRS; assign one, or split by block")
        return round(rule.distance / float(np.median([max(grid.pixel_metres()) for grid in grids])))
    if rule.by in ("scene", "appearance"):
        areas = [float(grid.height * grid.width) for grid in grids]
    else:
        areas = [region.area for unit in _polygon_units(grids, rule)[0] for region in unit]
    return int(np.sqrt(np.median(areas)))


def train_val_split(
    recipe: Recipe,
    training: Sequence[Sample],
    validation: Sequence[Sample] = (),
    scene_counts: Sequence[SceneCounts] | None = None,
) -> tuple[list[LabelledArea], list[LabelledArea]]:
    """Split samples as `data.val` of the recipe says.

    Parameters
    ----------
    training, validation
        The samples of `data.train`, and of `data.val` if that is a source.
    scene_counts
        Of the training samples, if already counted, so that they are not read again.

    Returns
    -------
    train, validation
        The second is empty if `data.val` is null. Validation areas are excluded from training areas on the same
        ground.

    Raises
    ------
    DataError
        One side is empty.
    """
    recipe = resolve_split(recipe, training)
    rule = recipe.data.val
    if rule is None:
        return full_areas(training), []
    if isinstance(rule, SpatialSplit):
        return spatial_split(training, recipe.task, rule, scene_counts)
    if isinstance(rule, TableSplit):
        training, validation = split_by_column(training, rule)
    val_areas = full_areas(validation)
    return _exclude_validation(full_areas(training), val_areas), val_areas


@dataclass(frozen=True)
class _SampleRegion(PixelRegion):
    """A region of one sample, with the index of the sample."""

    sample: int = 0

    @property
    def area(self) -> float:
        """Area in pixels."""
        return float(shapely.area(self.shapes).sum())


# What a split keeps together: regions of one or more samples.
_Unit = tuple[_SampleRegion, ...]


def spatial_split(
    samples: Sequence[Sample], task: Task, rule: SpatialSplit, scene_counts: Sequence[SceneCounts] | None = None
) -> tuple[list[LabelledArea], list[LabelledArea]]:
    """Split samples into training and validation areas by blocks, scenes, polygons, points or appearance.

    The units of the split, by `rule.by`: each block of `rule.block` pixels of a scene; each scene, with all scenes that
    overlap it; each polygon, in all scenes; or the pixels of each group of label points. The validation units are those
    whose field has one of `rule.values`; or units drawn at random that hold the fraction `rule.fraction` of the valid
    labelled pixels; or one of n random folds. Of 200 draws (or assignments to folds) the best is used: first, as few
    categories as possible are missing on one side; then, the share of each category is as close as possible to the
    fraction. All folds come from one assignment, which depends on the seed, not on the fold that is asked for.

    By appearance nothing is drawn: scenes, with all that overlap them, are ordered from dark to bright, and the folds
    are contiguous parts of the order with about equal area. With a fraction, validation is one end (`cut_end`).

    Training excludes everything within `rule.gap` pixels of validation areas, in every scene on the same ground.

    Returns
    -------
    train, validation

    Raises
    ------
    DataError
        There are too few units with valid labelled pixels, or the polygons cannot be used.
    """
    assert rule.gap is not None
    grids = [sample.scene.grid for sample in samples]
    units, by_value = _units(samples, rule)
    if scene_counts is None and rule.by not in _BY_SHAPES:
        scene_counts = [count_scene(sample, task, rule) for sample in samples]
    counts = _count_units(samples, units, task, rule, scene_counts or ())
    features = None
    if rule.by == "appearance":
        features = _unit_features(units, scene_counts or ())
    is_validation = np.zeros(len(units), dtype=bool)
    is_validation[choose_validation(counts, rule, by_value=by_value, features=features)] = True
    val_regions = _regions_of_samples(units, is_validation, len(samples))
    exclude = _exclusions(grids, val_regions, rule.gap)
    if rule.by in _BY_SHAPES:
        windows = [(grid.full_window,) for grid in grids]
    else:
        windows = [region.windows for region in _regions_of_samples(units, ~is_validation, len(samples))]
    train = [LabelledArea(*each) for each in zip(samples, windows, exclude, strict=True) if each[1]]
    return train, [
        _validation_area(sample, region) for sample, region in zip(samples, val_regions, strict=True) if region
    ]


def _count_units(
    samples: Sequence[Sample],
    units: Sequence[_Unit],
    task: Task,
    rule: SpatialSplit,
    scene_counts: Sequence[SceneCounts],
) -> NDArray[np.float64]:
    """Count the labelled pixels of each category in each unit, (units, T * K)."""
    if rule.by in _BY_SHAPES:
        found = np.array([_count_unit(samples, unit, task) for unit in units])
        return found.astype(np.float64)
    if rule.by == "block":
        found = np.concatenate([each.counts for each in scene_counts])
    else:
        found = np.array([sum(scene_counts[region.sample].counts[0] for region in unit) for unit in units])
    return found.astype(np.float64)


def _unit_features(units: Sequence[_Unit], scene_counts: Sequence[SceneCounts]) -> NDArray[np.float64]:
    """Return the appearance of each unit, (units, 2 * bands): the mean of its scenes' features."""
    features = describe_appearance([scene_counts[region.sample].moments for unit in units for region in unit])
    starts = np.cumsum([0, *(len(unit) for unit in units[:-1])])
    return np.add.reduceat(features, starts) / [[len(unit)] for unit in units]


def split_by_column(samples: Sequence[Sample], rule: TableSplit) -> tuple[list[Sample], list[Sample]]:
    """Split samples by a column of their table.

    Returns
    -------
    train, validation

    Raises
    ------
    DataError
        The table has no such column, or one side has no row.
    """
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    found = dict.fromkeys(sample.row.get(rule.column) for sample in samples)
    if None in found:
        columns = ", ".join(samples[0].row) or "none"
        raise DataError(
            f"data.val.column: the table has no column {rule.column!r}; besides image and label its columns are "
            f"{columns}"
        )
    for sample in samples:
        value = sample.row[rule.column].strip()
        if value in rule.val:
            sides[1].append(sample)
        elif value in rule.train if rule.train is not None else value:
            sides[0].append(sample)
    for side, name, values in zip(sides, ("training", "validation"), (rule.train, rule.val), strict=True):
        if not side:
            listed = ", ".join(map(repr, found))
            expected = f", {name} rows have {', '.join(values)}" if values else ""
            raise DataError(f"data.val: no {name} row; the values of {rule.column} are {listed}{expected}")
    return sides


def _units(samples: Sequence[Sample], rule: SpatialSplit) -> tuple[list[_Unit], NDArray[np.bool_] | None]:
    """Return the units of a split, and which of them `rule.values` chooses for validation (None without values)."""
    grids = [sample.scene.grid for sample in samples]
    if rule.by == "block":
        return [
            (_SampleRegion((block,), sample=index),)
            for index, grid in enumerate(grids)
            for block in _count_windows(grid, rule)
        ], None
    if rule.by in ("scene", "appearance"):
        groups = group_overlapping(grids)
        if rule.by == "appearance":  # so that rounding and ties do not depend on the order of the scenes
            names = [str(sample.scene.paths) for sample in samples]
            groups = sorted(
                (sorted(group, key=names.__getitem__) for group in groups), key=lambda group: names[group[0]]
            )
        return [
            tuple(_SampleRegion((grids[index].full_window,), sample=index) for index in group) for group in groups
        ], None
    if rule.by == "point":
        groups_of_points = group_points(samples, rule)
        marked = np.array([group.marked for group in groups_of_points], dtype=bool)
        return [_regions_of_group(group) for group in groups_of_points], None if rule.values is None else marked
    return _polygon_units(grids, rule)


def _regions_of_group(group: PointGroup) -> _Unit:
    """Return the pixels of a group of points as a region in each sample that has some."""
    polygons: dict[int, list[Any]] = {}
    for sample, polygon in group.pixels:
        polygons.setdefault(sample, []).append(polygon)
    return tuple(_SampleRegion((), tuple(shapes), sample) for sample, shapes in polygons.items())


def group_overlapping(grids: Sequence[Grid]) -> list[list[int]]:
    """Group grids that overlap on the ground, directly or through others."""
    group = list(range(len(grids)))
    for one, other in grids_within(grids, 0):
        (shape,) = PixelRegion((grids[other].full_window,)).shapes
        projected = PixelRegion((grids[one].full_window,)).reprojected(grids[one], grids[other]).shapes
        # Adjacent scenes share an edge, and a sliver from rounding.
        if any(shapely.intersection(shape, each).area > 0.5 for each in projected):
            old, new = group[other], group[one]
            group = [new if each == old else each for each in group]
    return [[index for index, each in enumerate(group) if each == one] for one in dict.fromkeys(group)]


def _polygon_units(grids: Sequence[Grid], rule: SpatialSplit) -> tuple[list[_Unit], NDArray[np.bool_] | None]:
    """Return the regions of each polygon on the grids, and which polygons `rule.values` chooses."""
    assert rule.polygons is not None
    path = rule.polygons
    polygons = read_polygons(rule.polygons, rule.layer, option="data.val.layer")
    polygons.warn_of_repairs()
    field_values = None if rule.field is None else np.array(polygons.field_values(rule.field), dtype=object)
    regions: list[list[_SampleRegion]] = [[] for _ in polygons.shapes]
    for index, grid in enumerate(grids):
        shapes, numbers, _ = project_to_grid(polygons, grid)
        (outline,) = PixelRegion((grid.full_window,)).shapes
        for at in np.flatnonzero(shapely.intersects(shapes, outline)):
            regions[numbers[at]].append(_SampleRegion((), (shapes[at],), index))
    used = [number for number, each in enumerate(regions) if each]
    if not used:
        raise DataError(
            f"{path}: none of its {len(regions)} polygons intersects a training scene; check the CRS of both"
        )
    by_value = None
    if field_values is not None and rule.values is not None:
        values = field_values[used]
        by_value = np.isin(values, rule.values)
        if not by_value.any() or by_value.all():
            how_many = "no polygon" if not by_value.any() else "every polygon"
            listed = ", ".join(sorted({"null" if value is None else value for value in values})[:8])
            raise DataError(
                f"{path}: {how_many} on the training scenes has {rule.field} {join_values(rule)}, so one side of the "
                f"split is empty; the values are {listed}"
            )
    return [tuple(regions[number]) for number in used], by_value


def _count_unit(samples: Sequence[Sample], unit: _Unit, task: Task) -> NDArray[np.int64]:
    """Count the labelled pixels of each category in a unit."""
    total = np.zeros(task.n_targets * len(task.categories), dtype=np.int64)
    for region in unit:
        for _, targets, _ in read_tiles([_area_of_region(samples[region.sample], region)]):
            total += count_categories(targets, task)
    return total


def _area_of_region(sample: Sample, region: PixelRegion) -> LabelledArea:
    """Return an area that includes exactly the pixels of a region."""
    grid = sample.scene.grid
    if not region.polygons:
        return LabelledArea(sample, region.windows)
    left, top, right, bottom = shapely.total_bounds(region.shapes)
    row, column = max(0, int(top)), max(0, int(left))
    height, width = min(grid.height, int(np.ceil(bottom))) - row, min(grid.width, int(np.ceil(right))) - column
    bounds = Window(column, row, max(width, 0), max(height, 0))
    return LabelledArea(sample, tuple(split_window(bounds, POLYGON_WINDOW_PX)), include=region)


def _validation_area(sample: Sample, region: PixelRegion) -> LabelledArea:
    """Return an area that includes exactly the pixels of a region, without empty windows."""
    area = _area_of_region(sample, region)
    if area.include is None:
        return area
    return replace(area, windows=tuple(window for window in area.windows if region.mask(window).any()))


def _regions_of_samples(units: Sequence[_Unit], selected: NDArray[np.bool_], samples: int) -> list[PixelRegion]:
    """Return the region of each sample that the selected units cover."""
    windows: list[list[Window]] = [[] for _ in range(samples)]
    polygons: list[list[Any]] = [[] for _ in range(samples)]
    for unit in np.flatnonzero(selected).tolist():
        for region in units[unit]:
            windows[region.sample] += region.windows
            polygons[region.sample] += region.polygons
    return [PixelRegion(tuple(boxes), tuple(shapes)) for boxes, shapes in zip(windows, polygons, strict=True)]


def _exclusions(grids: Sequence[Grid], val_regions: Sequence[PixelRegion], gap: int) -> list[PixelRegion]:
    """Return what training must exclude in each scene: validation ground of all scenes, buffered by the gap."""
    exclude = list(val_regions)
    for pair in grids_within(grids, gap):
        for one, other in (pair, pair[::-1]):
            if val_regions[one]:
                projected = val_regions[one].reprojected(grids[one], grids[other])
                exclude[other] = PixelRegion(exclude[other].windows, exclude[other].polygons + projected.polygons)
    return [region.buffered(gap) for region in exclude]


def _exclude_validation(training: Sequence[LabelledArea], validation: Sequence[LabelledArea]) -> list[LabelledArea]:
    """Return the training areas without the ground of the validation areas."""
    areas = [*training, *validation]
    grids = [area.sample.scene.grid for area in areas]
    found = list(training)
    for pair in grids_within(grids, 0):
        for one, other in (pair, pair[::-1]):
            if one >= len(training) > other:
                projected = areas[one].region.reprojected(grids[one], grids[other])
                before = found[other].exclude
                exclude = PixelRegion(before.windows, before.polygons + projected.polygons)
                found[other] = replace(found[other], exclude=exclude)
    return found
