"""The folder of a training run: its file names, and functions that read them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from segkit.errors import DataError, OutputError, RecipeError, first_line
from segkit.io.files import LOCK_FILE, as_output_error, lock_folder
from segkit.models.model_file import check_metrics
from segkit.recipe.schema import Recipe
from segkit.recipe.yaml import parse_yaml

# Paths in a run folder.
MODEL, METRICS, RECIPE, LOG = "model.safetensors", "metrics.json", "recipe.yaml", "log.csv"
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
# Keys that may be changed when a run is resumed: how long it trains, what helps against non-finite numbers, and the
# machine. Others would make it another experiment.
CHANGEABLE = (
    "train.epochs", "train.early_stopping", "train.learning_rate", "train.precision", "train.device", "train.workers",
    "data.cache",
)  # fmt: skip

_OLD_BASELINES = {"linear_discriminant": "lda"}  # {name in older metrics.json: name of the learner}


def find_folds(folder: Path) -> dict[tuple[int, int], Path]:
    """Return the run folders of a cross-validation, {(fold, number of folds): fold0of3, ...}; empty without any."""
    folders = sorted(folder.iterdir()) if folder.is_dir() else ()
    matches = [(each, re.fullmatch(r"fold(\d+)of(\d+)", each.name)) for each in folders]
    return {(int(match[1]), int(match[2])): each for each, match in matches if match and each.is_dir()}


def is_run_of(folder: Path, recipe: Recipe) -> bool:
    """Return whether the run in a folder was started with this recipe."""
    return stored_recipe_text(folder) == recipe_text(recipe)


def stored_recipe_text(folder: Path) -> str:
    """Return the recipe in a run folder with the keys of today: renamed ones, and new ones with their defaults."""
    content = (folder / RECIPE).read_bytes()
    try:
        return recipe_text(Recipe.from_dict(parse_yaml(content, RECIPE)))
    except (RecipeError, TypeError, ValueError):
        return content.decode(errors="replace")


def changes_of(folder: Path, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return {key: (value in the run folder, value now)} of the keys in which a recipe differs.

    Raises
    ------
    RecipeError
        The recipe in the folder is not YAML.
    """
    stored = parse_yaml(stored_recipe_text(folder), str(folder / RECIPE))
    return changed_keys(stored, yaml.safe_load(recipe_text(recipe)))


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as the YAML that is stored in a run folder."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False)


def changed_keys(before: Any, after: Any, place: str = "") -> dict[str, tuple[Any, Any]]:
    """Return {key: (value before, value after)} of the keys in which two raw recipes differ; None if one lacks it."""
    if before == after:
        return {}
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        pairs = {str(key): (before.get(key), after.get(key)) for key in {**before, **after}}
    elif _are_tables(before, after) and len(before) == len(after):
        pairs = {str(number): pair for number, pair in enumerate(zip(before, after, strict=True))}
    else:
        return {place: (before, after)}
    found = (changed_keys(old, new, f"{place}.{key}".lstrip(".")) for key, (old, new) in pairs.items())
    return {key: values for each in found for key, values in each.items()}


def _are_tables(*values: Any) -> bool:
    """Whether all values are lists of mappings, as classes are."""
    return all(
        isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(each, Mapping) for each in value)
        for value in values
    )


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Make a run folder and lock it during the block; it is removed at the end if it is new and still empty.

    Raises
    ------
    OutputError
        Another process has locked it, or it cannot be made.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        with as_output_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(lock_folder(folder))
            except (BlockingIOError, FileNotFoundError):
                raise OutputError(
                    f"{folder}: another training or segkit finish is writing to it; let it end or stop it (Ctrl-C), or "
                    "name another folder"
                ) from None
        stack.callback((folder / LOCK_FILE).unlink, missing_ok=True)
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def baseline_scores(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, float | None]]:
    """Return {learner: {score: value}} of the baselines in the content of metrics.json; empty without any."""
    return {_OLD_BASELINES.get(name, name): scores for name, scores in metrics.get("baselines", {}).items()}


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a run's metrics.json.

    Raises
    ------
    DataError
        It is damaged.
    """
    path = folder / METRICS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("confusion", {}), dict):
            raise ValueError("no scores")  # noqa: TRY004 - of the file
        check_metrics(found)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read ({first_line(error)}); copy it again, or train the run again"
        ) from error
    return found


def read_log(path: Path) -> list[dict[str, float]]:
    """Read a run's log.csv: one dict per epoch.

    Raises
    ------
    DataError
        It is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        if any("epoch" not in row for row in rows):
            raise ValueError("no column 'epoch'")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path}: is no log of a training ({first_line(error)}); copy it again, or remove it if it is not needed"
        ) from error
    return rows
