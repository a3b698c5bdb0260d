"""From a recipe to its training and validation areas."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from segkit.data.area import LabelledArea
from segkit.data.cache import Cache
from segkit.data.examination import Examination, examine, require_same_bands
from segkit.data.pairing import Sample, open_samples
from segkit.data.split import train_val_split
from segkit.errors import DataError
from segkit.recipe.schema import Data, Recipe
from segkit.recipe.sources import DatasetSource
from segkit.recipe.splits import SpatialSplit
from segkit.task import Task


def open_areas(
    recipe: Recipe, *, cache: Cache | None = None, show_progress: bool = False
) -> tuple[list[LabelledArea], list[LabelledArea]]:
    """Open the training and the validation areas of a recipe.

    With `show_progress`, unmatched images and labels are listed on stderr.

    Raises
    ------
    DataError
        A sample has no labels, scenes differ in their number of bands, or no training area is left.
    """
    training, validation = _open_both(recipe, cache=cache, show_progress=show_progress)
    require_same_bands([*training, *validation])
    return train_val_split(recipe, training, validation)


def examine_recipe(recipe: Recipe, *, cache: Cache | None = None, show_progress: bool = False) -> Examination:
    """Open the areas of a recipe and examine them as `segkit.check` does.

    Raises
    ------
    SegkitError
        A scene or label cannot be opened.
    """
    training, validation = _open_both(recipe, cache=cache, show_progress=show_progress)
    return examine(recipe, training, validation, show_progress=show_progress)


def _open_both(recipe: Recipe, *, cache: Cache | None, show_progress: bool) -> tuple[list[Sample], list[Sample]]:
    """Open the samples of `data.train` and of `data.val`; the latter are none if it is a split."""
    sides: list[list[Sample]] = [[], []]
    for side, name in zip(sides, ("train", "val"), strict=True):
        source = getattr(recipe.data, name)
        if isinstance(source, DatasetSource):
            side += open_labelled_samples(
                source, recipe.data, recipe.task, f"data.{name}", cache=cache, show_progress=show_progress
            )
    return sides[0], sides[1]


def with_fold(recipe: Recipe, fold: str) -> Recipe:
    """Return a recipe that validates on one of n folds of its training scenes.

    The units of the folds are those of `data.val` if that is a spatial split, else whole scenes.

    Parameters
    ----------
    fold
        For example "0/5", the first of five.

    Raises
    ------
    RecipeError
        The fold does not exist, or `data.val.values` already chooses what to validate on.
    """
    raw = recipe.to_dict()
    rule = raw["data"]["val"] if isinstance(recipe.data.val, SpatialSplit) else {"by": "scene"}
    raw["data"]["val"] = rule | {"fold": fold}
    return Recipe.from_dict(raw)


def open_labelled_samples(
    source: DatasetSource,
    data: Data,
    task: Task,
    where: str,
    *,
    cache: Cache | None = None,
    trained: Sequence[str] | None = None,
    show_progress: bool = False,
) -> list[Sample]:
    """Open the scenes of a source that have labels; with progress, list unmatched files on stderr.

    `trained` are the names of the bands of a model, see `segkit.recipe.imagery.open_scene`.

    Raises
    ------
    DataError
        No scene has labels; `where` is named.
    """
    found = open_samples(source, data, task, cache, trained=trained)
    labelled = [sample for sample in found.samples if sample.labels is not None]
    if not labelled:
        raise DataError(f"{where}: no scene has labels; images and labels are paired by file name, see segkit check")
    if found.unmatched and show_progress:
        number, total = len(found.unmatched), len(found.unmatched) + len(found.samples)
        print(
            f"{where}: {number} of {total} files have no matching image or label and are not used, such as "
            f"{found.unmatched[0]} (segkit check lists them)",
            file=sys.stderr,
        )
    return labelled
