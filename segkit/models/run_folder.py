"""The folder of a training run: its file names, and functions that read them."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segkit.errors import RecipeError
from segkit.recipe.schema import Recipe

# Paths in a run folder.
MODEL, METRICS, RECIPE, LOG = "model.safetensors", "metrics.json", "recipe.yaml", "log.csv"
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
# Keys that may be changed when a run is resumed: those that help against non-finite numbers.
CHANGEABLE = ("train.learning_rate", "train.precision")

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
    text = (folder / RECIPE).read_text()
    try:
        return recipe_text(Recipe.from_dict(yaml.safe_load(text)))
    except (yaml.YAMLError, RecipeError, TypeError, ValueError):
        return text


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as the YAML that is stored in a run folder."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False)


def resume_key(raw: dict[str, Any]) -> str:
    """Return the YAML of a recipe without `CHANGEABLE`, which must be equal when a run is resumed; changes `raw`."""
    for key in CHANGEABLE:
        part, name = key.split(".")
        raw[part].pop(name, None)
    return yaml.safe_dump(raw, sort_keys=False)


def baseline_scores(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, float | None]]:
    """Return {learner: {score: value}} of the baselines in the content of metrics.json; empty without any."""
    return {_OLD_BASELINES.get(name, name): scores for name, scores in metrics.get("baselines", {}).items()}


def read_log(path: Path) -> list[dict[str, float]]:
    """Read a run's log.csv: one dict per epoch."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
