"""Agreement of trained variants: share of validation pixels for which they make the same decision."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import LabelledArea, iter_windows
from segkit.data.areas import examine_recipe
from segkit.data.cache import Cache
from segkit.errors import UsageError
from segkit.evaluation.decisions import ModelPredictor
from segkit.inference.settings import PredictOptions
from segkit.io.files import temporary_folder
from segkit.models.run_folder import MODEL
from segkit.models.segmenter import Segmenter, load
from segkit.recipe.schema import Recipe
from segkit.runtime.progress import progress
from segkit.task import IGNORE
from segkit.training.comparison import Measure
from segkit.training.train import check_names
from segkit.training.variants import TrialPlan, variant_names

_WINDOW_SIZE = 1024  # pixels; side of the windows that are compared at once


class ValidationAreas:
    """Training and validation areas of recipes; opened once for all recipes that share them."""

    def __init__(self, cache: Cache | None, *, force: bool) -> None:
        self._cache, self._force = cache, force
        self._opened: dict[str, tuple[Sequence[LabelledArea], Sequence[LabelledArea]]] = {}

    def open(self, recipe: Recipe) -> tuple[Sequence[LabelledArea], Sequence[LabelledArea]]:
        """Return training and validation areas; raise an error if the data has problems, unless `force`."""
        raw = recipe.to_dict()
        key = json.dumps([raw["data"], raw["task"] | {"head": None}, recipe.train.tile_size])
        if key not in self._opened:
            examination = examine_recipe(recipe, cache=self._cache)
            examination.require_trainable(force=self._force)
            self._opened[key] = examination.training, examination.validation
        return self._opened[key]

    def comparison_key(self, recipe: Recipe) -> Any:
        """Return a value that is equal for recipes with the same validation pixels, truth and classes."""
        areas = [
            (
                area.sample.scene.paths,
                area.sample.scene.grid,
                shapely.to_wkb(area.region.shapes).tolist(),
                area.labels.name,
            )
            for area in self.open(recipe)[1]
        ]
        return areas, [(row["name"], row["value"]) for row in recipe.task.legend], recipe.task.type, recipe.data.ignore


def check_comparable(plans: Sequence[TrialPlan], areas: ValidationAreas) -> None:
    """Raise an error if a variant cannot be built or compared with the others, before any is trained."""
    built = set()
    for fold in dict.fromkeys(plan.fold for plan in plans):
        fold_plans = [plan for plan in plans if plan.fold == fold]
        first_key = areas.comparison_key(fold_plans[0].recipe)
        for plan in fold_plans:
            check_names(plan.recipe)
            training, validation = areas.open(plan.recipe)
            if not validation:
                raise UsageError("data.val is null, so there is nothing to compare on; give data.val, or --fold")
            if areas.comparison_key(plan.recipe) != first_key:
                raise UsageError(
                    f"{plan.variant} validates on other pixels or classes than {fold_plans[0].variant}, so their "
                    "scores are not comparable; name separate validation scenes (data.val: images, labels), or vary "
                    "another key"
                )
            names = training[0].sample.scene.band_names
            network = json.dumps([plan.recipe.to_dict()["model"], plan.recipe.task.channels, len(names)])
            if network not in built:
                Segmenter(plan.recipe, [0.0] * len(names), [1.0] * len(names), names, pretrained=False)
                built.add(network)


def measure_agreement(
    folder: Path, plans: Sequence[TrialPlan], areas: ValidationAreas, *, show_progress: bool
) -> tuple[tuple[float | None, ...], ...]:
    """Return the mean agreement of each pair of variants; see `Comparison.agreement`."""
    variants = variant_names(plans)
    shares: dict[tuple[str, str], list[float]] = {(one, other): [] for one in variants for other in variants}
    for fold in dict.fromkeys(plan.fold for plan in plans):
        fold_plans = [plan for plan in plans if plan.fold == fold]
        pairs = [
            (a, b)
            for a, b in itertools.combinations(range(len(fold_plans)), 2)
            if (fold_plans[a].variant == fold_plans[b].variant) != (fold_plans[a].seed == fold_plans[b].seed)
        ]
        if not pairs:
            continue
        agreeing, total = _count_agreement(folder, fold_plans, pairs, areas, show_progress=show_progress)
        for pair, n_agreeing, n_total in zip(pairs, agreeing, total, strict=True):
            one, other = (fold_plans[index].variant for index in pair)
            for key in {(one, other), (other, one)} if n_total else ():
                shares[key].append(n_agreeing / n_total)
    return tuple(tuple(Measure.from_values(shares[one, other]).mean for other in variants) for one in variants)


def _count_agreement(
    folder: Path,
    plans: Sequence[TrialPlan],
    pairs: Sequence[tuple[int, int]],
    areas: ValidationAreas,
    *,
    show_progress: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each pair of plans, the number of equal decisions and of all decisions, int64 (pairs,) each.

    The decisions of one model after the other are written to files, so that memory holds one model and one window of
    every map.
    """
    agreeing, total = np.zeros((2, len(pairs)), dtype=np.int64)
    recipe = plans[0].recipe
    dtype = np.dtype("uint8" if len(recipe.task.categories) < 255 else "uint16")
    validation = areas.open(recipe)[1]
    bar = progress("agreement", len(plans), "models", show=show_progress)
    with temporary_folder(folder, "agreement") as temporary, bar as advance:
        for number, plan in enumerate(plans):
            predictor = ModelPredictor(load(plan.folder / MODEL), PredictOptions(device=plan.recipe.train.device))
            for index, area in enumerate(areas.open(plan.recipe)[1]):
                store_decisions(temporary / f"{number}-{index}", predictor, area, dtype)
            advance(1)
        for index, area in enumerate(validation):
            shape = (recipe.task.n_targets, *area.sample.scene.grid.shape)
            files = [temporary / f"{number}-{index}" for number in range(len(plans))]
            for decided in _read_decisions(files, dtype, shape, iter_windows(area.windows, _WINDOW_SIZE)):
                for number, (a, b) in enumerate(pairs):
                    both = (decided[a] > 0) & (decided[b] > 0)
                    total[number] += both.sum()
                    agreeing[number] += (both & (decided[a] == decided[b])).sum()
    return agreeing, total


def _read_decisions(
    files: Sequence[Path], dtype: np.dtype[Any], shape: tuple[int, ...], windows: Iterable[Window]
) -> Iterator[list[NDArray[Any]]]:
    """Yield the decisions of all models in each window; at the end no file is mapped, so that it can be removed."""
    maps = [np.memmap(file, dtype, "r", shape=shape) for file in files]
    for window in windows:  # copies, which do not keep the files mapped
        yield [np.array(each[:, *window.toslices()]) for each in maps]


def store_decisions(path: Path, predictor: ModelPredictor, area: LabelledArea, dtype: np.dtype[Any]) -> None:
    """Write an area's decisions as a raw array (T, H, W) of its scene: category + 1, and 0 where unlabelled.

    It is written row by row: with mapped memory a full disk would kill the process.
    """
    height, width = area.sample.scene.grid.shape
    with path.open("wb") as file:
        file.truncate(area.labels.task.n_targets * height * width * dtype.itemsize)
        for block in predictor(area):
            values = np.where(block.truth == IGNORE, 0, block.decided + 1).astype(dtype)
            for target, rows in enumerate(values):
                for row, line in enumerate(rows, int(block.window.row_off)):
                    file.seek(((target * height + row) * width + int(block.window.col_off)) * dtype.itemsize)
                    file.write(np.ascontiguousarray(line).data)
