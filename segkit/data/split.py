"""Which parts of the samples train and which validate, so that neither sees the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import PIECE, Area, count_categories, read_pieces, whole
from segkit.data.pairing import Sample
from segkit.errors import DataError
from segkit.io.cover import Cover, near
from segkit.io.grid import Grid, cut
from segkit.io.polygons import on_grid, read_polygons
from segkit.recipe.schema import Recipe, Rows, Split
from segkit.task.task import IGNORE, Task

_DRAWS = 200  # random assignments of parts, of which the one that shares out the classes best is kept
# Blocks that nobody chose: their side at most (or four tiles), their side at least, and how many should validate.
_BLOCK, _SMALLEST_BLOCK, _BLOCKS = 512, 8, 3


@dataclass(frozen=True)
class Survey:
    """What was counted in a scene.

    Parameters
    ----------
    valid, labelled
        Pixels that hold data; those of them whose label is known.
    counts
        int64 (windows, P * K): known pixels of each category of each plane, for each of the windows of `survey`.
    """

    valid: int
    labelled: int
    counts: NDArray[np.int64]


def survey(
    sample: Sample,
    task: Task,
    rule: object,
    *,
    size: int = 1024,
    advance: Callable[[float], None] = lambda pixels: None,
) -> Survey:
    """Read a scene once and count: block by block where it is to be split into blocks, else all of it together.

    Parameters
    ----------
    rule
        `data.val` of a recipe that is `fitted`.
    size
        Pixels along a side of what is read at once.
    """
    (area,) = whole([sample])
    windows = _windows(sample.scene.grid, rule)
    counts = np.zeros((len(windows), task.planes * len(task.categories)), dtype=np.int64)
    valid = labelled = 0
    with sample.scene.open() as reader:
        for number, window in enumerate(windows):
            for part in cut(window, size):
                shown = reader.read(part).valid
                planes = area.truth(part, shown)
                valid += int(shown.sum())
                labelled += int((planes != IGNORE).any(axis=0).sum())
                counts[number] += count_categories(planes, task)
                advance(part.height * part.width)
    return Survey(valid, labelled, counts)


def _windows(grid: Grid, rule: object) -> list[Window]:
    """Return what is counted for itself in a scene."""
    if isinstance(rule, Split) and rule.by == "block":
        assert rule.block is not None
        return list(grid.tiles(rule.block))
    return [grid.whole]


def fitted(recipe: Recipe, training: Sequence[Sample]) -> Recipe:
    """Return a recipe whose split has the block and the gap that suit the scenes, where the recipe leaves them open.

    A block is 512 pixels wide, or four tiles, and halved until the scenes have room for enough of them that three
    validate (and three train). The gap is a tile, but no more than a quarter of the side of what is kept together: a
    block, a typical scene, a typical polygon. So a block whose neighbours all validate still trains in its middle.

    Raises
    ------
    DataError
        The polygons cannot be used.
    """
    rule = recipe.data.val
    if not isinstance(rule, Split) or not training:
        return recipe
    grids, tile = [sample.scene.grid for sample in training], recipe.train.tile_size
    block, gap = rule.block, rule.gap
    if rule.by == "block" and block is None:
        share = rule.fraction if rule.fold is None else 1 / int(rule.fold.partition("/")[2])
        pixels = sum(grid.height * grid.width for grid in grids)
        wanted = _BLOCKS / min(share, 1 - share)
        # A gap that is given needs blocks that are wider than it.
        least = max(_SMALLEST_BLOCK, min(2 * (gap or 0), math.isqrt(pixels) // 2))
        block = max(_BLOCK, 4 * tile)
        while block // 2 >= least and pixels < wanted * block**2:
            block //= 2
    if gap is None:
        gap = min(tile, max(1, _side(grids, rule, block) // 4))
    split = rule.model_copy(update={"block": block, "gap": gap})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"val": split})})


def _side(grids: Sequence[Grid], rule: Split, block: int | None) -> int:
    """Return the side in pixels of what a split keeps together: of a square with the median area."""
    if rule.by == "block":
        assert block is not None
        return block
    if rule.by == "scene":
        areas = [float(grid.height * grid.width) for grid in grids]
    else:
        areas = [part.area for unit in _of_polygons(grids, rule)[0] for part in unit]
    return int(np.sqrt(np.median(areas)))


def divide(
    recipe: Recipe,
    training: Sequence[Sample],
    validation: Sequence[Sample] = (),
    surveys: Sequence[Survey] | None = None,
) -> tuple[list[Area], list[Area]]:
    """Divide samples as `data.val` says.

    Parameters
    ----------
    training, validation
        The samples of `data.train`, and of `data.val` where that has its own.
    surveys
        Of the training samples, if there are any already: then nothing is read twice.

    Returns
    -------
    train, validation
        The second is empty where `data.val` is null. Training never sees ground that validates.

    Raises
    ------
    DataError
        One side is left without anything.
    """
    recipe = fitted(recipe, training)
    rule = recipe.data.val
    if rule is None:
        return whole(training), []
    if isinstance(rule, Split):
        return split(training, recipe.task, rule, surveys)
    if isinstance(rule, Rows):
        training, validation = by_rows(training, rule)
    held = whole(validation)
    return _without(whole(training), held), held


@dataclass(frozen=True)
class _Part(Cover):
    """Some of the pixels of one sample, by its place in the list."""

    place: int = 0

    @property
    def area(self) -> float:
        """How many pixels it holds."""
        return float(shapely.area(self.shapes).sum())


# What a split keeps together: parts of one or more samples.
_Unit = tuple[_Part, ...]


def split(
    samples: Sequence[Sample], task: Task, rule: Split, surveys: Sequence[Survey] | None = None
) -> tuple[list[Area], list[Area]]:
    """Divide samples into areas to train and areas to validate.

    What is kept together, as `rule.by` says: every block of `rule.block` pixels of a scene; every scene, with all that
    share ground with it; or what a polygon covers, in all scenes. Of these units some validate: those whose field has
    one of `rule.values`; or as many drawn at random as hold the wanted fraction of the valid pixels with a known label;
    or one of n folds, which are dealt at random, too. Of many draws (or deals) that one is kept in which the fewest
    categories lack on one side, and of these the one in which every category comes closest to its share. Folds depend
    on the seed, not on which of them is asked for.

    Training sees nothing within `rule.gap` pixels of what validates, in whatever scene it shows the same ground.

    Returns
    -------
    train, validation

    Raises
    ------
    DataError
        There are too few units with valid pixels and known labels, or the polygons cannot be used.
    """
    assert rule.gap is not None
    grids = [sample.scene.grid for sample in samples]
    units, named = _units(samples, rule)
    if rule.by != "polygon" and surveys is None:
        surveys = [survey(sample, task, rule) for sample in samples]
    if rule.by == "block":
        found = np.concatenate([each.counts for each in surveys or ()])
    elif rule.by == "scene":
        found = np.array([sum((surveys or ())[part.place].counts[0] for part in unit) for unit in units])
    else:
        found = np.array([_counts(samples, unit, task) for unit in units])
    counts = found.astype(np.float64)
    labelled = np.flatnonzero(counts.sum(axis=1))
    _check_enough(len(labelled), rule)
    if named is not None:
        held = np.flatnonzero(named)
        if not np.intersect1d(held, labelled).size:
            raise DataError(f"{rule.polygons}: no polygon whose {rule.field} is {_either(rule)} covers a known label")
    elif rule.fold is not None:
        number, folds = map(int, rule.fold.split("/"))
        held = labelled[_deal(counts[labelled], folds, rule.seed) == number]
    else:
        held = labelled[_draw(counts[labelled], rule.fraction, rule.seed)]
    validates = np.zeros(len(units), dtype=bool)
    validates[held] = True
    covers = _covers(units, validates, len(samples))
    hidden = _hidden(grids, covers, rule.gap)
    if rule.by == "polygon":
        kept = [(grid.whole,) for grid in grids]
    else:
        kept = [cover.windows for cover in _covers(units, ~validates, len(samples))]
    train = [Area(*each) for each in zip(samples, kept, hidden, strict=True) if each[1]]
    return train, [_validating(sample, cover) for sample, cover in zip(samples, covers, strict=True) if cover]


def by_rows(samples: Sequence[Sample], rule: Rows) -> tuple[list[Sample], list[Sample]]:
    """Divide samples by a column of the table that they come from.

    Returns
    -------
    train, validation

    Raises
    ------
    DataError
        The table has no such column, or no row of one side.
    """
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    found = dict.fromkeys(sample.row.get(rule.column) for sample in samples)
    if None in found:
        there = ", ".join(samples[0].row) or "none"
        raise DataError(
            f"data.val.column: the table has no column {rule.column!r}; its columns besides image and label are {there}"
        )
    for sample in samples:
        value = sample.row[rule.column].strip()
        if value in rule.val:
            sides[1].append(sample)
        elif value in rule.train if rule.train is not None else value:
            sides[0].append(sample)
    for side, name, wanted in zip(sides, ("trains", "validates"), (rule.train, rule.val), strict=True):
        if not side:
            raise DataError(
                f"data.val: no row {name} ({rule.column} is {', '.join(map(repr, found))}"
                + (f"; {name} where it is {', '.join(wanted)})" if wanted else ")")
            )
    return sides


def _units(samples: Sequence[Sample], rule: Split) -> tuple[list[_Unit], NDArray[np.bool_] | None]:
    """Return what is kept together, and which of it was named to validate (None where nothing was)."""
    grids = [sample.scene.grid for sample in samples]
    if rule.by == "block":
        return [
            (_Part((block,), place=place),) for place, grid in enumerate(grids) for block in _windows(grid, rule)
        ], None
    if rule.by == "scene":
        return [
            tuple(_Part((grids[place].whole,), place=place) for place in group) for group in _same_ground(grids)
        ], None
    return _of_polygons(grids, rule)


def _same_ground(grids: Sequence[Grid]) -> list[list[int]]:
    """Group grids that share ground, directly or through others."""
    group = list(range(len(grids)))
    for one, other in near(grids, 0):
        (shape,) = Cover((grids[other].whole,)).shapes
        there = Cover((grids[one].whole,)).onto(grids[one], grids[other]).shapes
        # Neighbours share an edge, and what rounding adds to it.
        if any(shapely.intersection(shape, each).area > 0.5 for each in there):
            old, new = group[other], group[one]
            group = [new if each == old else each for each in group]
    return [[place for place, each in enumerate(group) if each == one] for one in dict.fromkeys(group)]


def _of_polygons(grids: Sequence[Grid], rule: Split) -> tuple[list[_Unit], NDArray[np.bool_] | None]:
    assert rule.polygons is not None
    path = rule.polygons
    polygons = read_polygons(rule.polygons, rule.layer, option="data.val.layer")
    polygons.warn()
    texts = None if rule.field is None else np.array(polygons.texts(rule.field), dtype=object)
    parts: list[list[_Part]] = [[] for _ in polygons.shapes]
    for place, grid in enumerate(grids):
        shapes, numbers, _ = on_grid(polygons, grid)
        (own,) = Cover((grid.whole,)).shapes
        for at in np.flatnonzero(shapely.intersects(shapes, own)):
            parts[numbers[at]].append(_Part((), (shapes[at],), place))
    meeting = [number for number, each in enumerate(parts) if each]
    if not meeting:
        raise DataError(f"{path}: none of its {len(parts)} polygons meets a training scene; check the CRS of both")
    named = None
    if texts is not None and rule.values is not None:
        values = texts[meeting]
        named = np.isin(values, rule.values)
        if not named.any() or named.all():
            which = "none" if not named.any() else "each"
            there = ", ".join(sorted({"null" if value is None else value for value in values})[:8])
            raise DataError(
                f"{path}: {which} of the polygons on training scenes validates, of which {rule.field} is "
                f"{_either(rule)}; it is {there}"
            )
    return [tuple(parts[number]) for number in meeting], named


def _either(rule: Split) -> str:
    return " or ".join(rule.values or ())


def _counts(samples: Sequence[Sample], unit: _Unit, task: Task) -> NDArray[np.int64]:
    """Count the known pixels of each category in a unit."""
    total = np.zeros(task.planes * len(task.categories), dtype=np.int64)
    for part in unit:
        for _, planes, _ in read_pieces([_counting(samples[part.place], part)]):
            total += count_categories(planes, task)
    return total


def _counting(sample: Sample, cover: Cover) -> Area:
    """Return an area in which exactly a cover counts."""
    grid = sample.scene.grid
    if not cover.polygons:
        return Area(sample, cover.windows)
    left, top, right, bottom = shapely.total_bounds(cover.shapes)
    row, column = max(0, int(top)), max(0, int(left))
    height, width = min(grid.height, int(np.ceil(bottom))) - row, min(grid.width, int(np.ceil(right))) - column
    around = Window(column, row, max(width, 0), max(height, 0))
    return Area(sample, tuple(cut(around, PIECE)), counted=cover)


def _validating(sample: Sample, cover: Cover) -> Area:
    """Return an area in which a cover counts, without windows that it does not meet."""
    area = _counting(sample, cover)
    if area.counted is None:
        return area
    return replace(area, windows=tuple(window for window in area.windows if cover.mask(window).any()))


def _covers(units: Sequence[_Unit], wanted: NDArray[np.bool_], samples: int) -> list[Cover]:
    """Return what the wanted units are of each sample."""
    windows: list[list[Window]] = [[] for _ in range(samples)]
    polygons: list[list[Any]] = [[] for _ in range(samples)]
    for unit in np.flatnonzero(wanted).tolist():
        for part in units[unit]:
            windows[part.place] += part.windows
            polygons[part.place] += part.polygons
    return [Cover(tuple(own), tuple(drawn)) for own, drawn in zip(windows, polygons, strict=True)]


def _hidden(grids: Sequence[Grid], validating: Sequence[Cover], gap: int) -> list[Cover]:
    """Return what training must not see of each scene: ground that validates, in whatever scene, and the gap."""
    hidden = list(validating)
    for pair in near(grids, gap):
        for one, other in (pair, pair[::-1]):
            if validating[one]:
                there = validating[one].onto(grids[one], grids[other])
                hidden[other] = Cover(hidden[other].windows, hidden[other].polygons + there.polygons)
    return [cover.grown(gap) for cover in hidden]


def _without(training: Sequence[Area], validation: Sequence[Area]) -> list[Area]:
    """Return training areas that show nothing of the ground that validation counts."""
    areas = [*training, *validation]
    grids = [area.sample.scene.grid for area in areas]
    found = list(training)
    for pair in near(grids, 0):
        for one, other in (pair, pair[::-1]):
            if one >= len(training) > other:
                there = areas[one].cover.onto(grids[one], grids[other])
                mine = found[other].hidden
                found[other] = replace(found[other], hidden=Cover(mine.windows, mine.polygons + there.polygons))
    return found


def _check_enough(units: int, rule: Split) -> None:
    what = {
        "block": f"blocks of {rule.block} x {rule.block} pixels hold",
        "scene": "groups of scenes on the same ground hold",
        "polygon": f"polygons of {rule.polygons} hold",
    }[rule.by]
    needed = 2 if rule.fold is None else int(rule.fold.partition("/")[2])
    if rule.values is None and units < needed:
        advice = "make data.val.block smaller" if rule.by == "block" else "set data.val.by: block"
        raise DataError(
            f"data.val: {units} {what} valid pixels with known labels, a split needs {_number(needed)}; {advice}, or "
            "give data.val images and labels of its own"
        )


def _number(count: int) -> str:
    return "two" if count == 2 else str(count)


def _draw(counts: NDArray[np.float64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose rows of `counts` (units, categories) that hold about `fraction` of every category."""
    random = np.random.default_rng(seed)
    pixels = counts.sum(axis=1) / counts.sum()
    best, least = np.zeros(len(counts), dtype=bool), (np.inf, np.inf)
    for _ in range(_DRAWS):
        order = random.permutation(len(counts))
        held = np.cumsum(pixels[order])
        take = min(max(1, int(np.argmin(np.abs(held - fraction))) + 1), len(counts) - 1)
        drawn = np.zeros(len(counts), dtype=bool)
        drawn[order[:take]] = True
        if (miss := _missed(counts, drawn, fraction)) < least:
            best, least = drawn, miss
    return best


def _deal(counts: NDArray[np.float64], folds: int, seed: int) -> NDArray[np.intp]:
    """Give each row of `counts` (units, categories) one of n folds that hold about the same of every category."""
    random = np.random.default_rng(seed)
    pixels = counts.sum(axis=1)
    best, least = np.zeros(len(counts), dtype=np.intp), (np.inf, np.inf)
    for _ in range(_DRAWS):
        dealt, number = np.zeros(len(counts), dtype=np.intp), np.zeros(folds)
        order = random.permutation(len(counts))
        for turn, unit in enumerate(order):
            # Each fold gets one before any gets a second; then who has least.
            dealt[unit] = turn if turn < folds else int(np.argmin(number))
            number[dealt[unit]] += pixels[unit]
        each = np.array([_missed(counts, dealt == fold, 1 / folds) for fold in range(folds)])
        if (miss := tuple(each.sum(axis=0))) < least:
            best, least = dealt, miss
    return best


def _missed(counts: NDArray[np.float64], held: NDArray[np.bool_], fraction: float) -> tuple[float, float]:
    """Return how many categories are on one side only, and how far the held shares are from a fraction, in sum."""
    total = counts.sum(axis=0)
    inside = counts[held].sum(axis=0)
    present = total > 0
    one_sided = present & ((inside == 0) | (inside == total))
    return float(one_sided.sum()), float(np.abs(inside[present] / total[present] - fraction).sum())
