"""What a recipe trains on and what it validates on."""

from __future__ import annotations

import sys

from segkit.data.area import Area
from segkit.data.cache import Cache
from segkit.data.examination import Examination, check_bands, examine
from segkit.data.pairing import Sample, resolve
from segkit.data.split import divide
from segkit.errors import DataError
from segkit.recipe.schema import Data, Recipe, Source, Split
from segkit.task.task import Task


def areas(recipe: Recipe, *, cache: Cache | None = None, show_progress: bool = False) -> tuple[list[Area], list[Area]]:
    """Return what a recipe trains on and what it validates on; what has no partner is told where progress is.

    Raises
    ------
    DataError
        A sample has no labels, scenes differ in their number of bands, or there is nothing left to train on.
    """
    training, validation = _samples(recipe, cache=cache, show_progress=show_progress)
    check_bands([*training, *validation])
    return divide(recipe, training, validation)


def examined(recipe: Recipe, *, cache: Cache | None = None, show_progress: bool = False) -> Examination:
    """Return the same with all that is wrong with it, as `segkit.check` tells.

    Raises
    ------
    SegkitError
        Scenes or labels cannot be opened.
    """
    return examine(recipe, *_samples(recipe, cache=cache, show_progress=show_progress), show_progress=show_progress)


def _samples(recipe: Recipe, *, cache: Cache | None, show_progress: bool) -> tuple[list[Sample], list[Sample]]:
    sides: list[list[Sample]] = [[], []]
    for side, name in zip(sides, ("train", "val"), strict=True):
        source = getattr(recipe.data, name)
        if isinstance(source, Source):
            where = f"data.{name}"
            side += labelled_samples(source, recipe.data, recipe.task, where, cache=cache, show_progress=show_progress)
    return sides[0], sides[1]


def with_fold(recipe: Recipe, fold: str) -> Recipe:
    """Return a recipe that validates on one of n folds of its training scenes.

    Folds are made of what `data.val` keeps together where that is a split, else of whole scenes.

    Parameters
    ----------
    fold
        "0/5" is the first of five.

    Raises
    ------
    RecipeError
        It is no fold, or the recipe names by `data.val.values` what validates.
    """
    raw = recipe.to_dict()
    before = raw["data"]["val"] if isinstance(recipe.data.val, Split) else {"by": "scene"}
    raw["data"]["val"] = before | {"fold": fold}
    return Recipe.from_dict(raw)


def labelled_samples(
    source: Source, data: Data, task: Task, where: str, *, cache: Cache | None = None, show_progress: bool = False
) -> list[Sample]:
    """Open the scenes of a source that have labels; with progress, list on stderr what has no partner.

    Raises
    ------
    DataError
        No scene has labels; `where` is named.
    """
    found = resolve(source, data, task, cache)
    labelled = [sample for sample in found.samples if sample.labels is not None]
    if not labelled:
        raise DataError(f"{where}: no scene has labels; images and labels pair by file stem, see segkit check")
    if found.unmatched and show_progress:
        listed = ", ".join(str(path) for path in found.unmatched)
        print(f"{where}: left out, without a partner: {listed}", file=sys.stderr)
    return labelled
