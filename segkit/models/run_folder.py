"""The folder of a training run: the names of its files, and what they hold."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from segkit.recipe.schema import Recipe

# In a run's folder.
MODEL, METRICS, RECIPE, LOG = "model.safetensors", "metrics.json", "recipe.yaml", "log.csv"
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
# Keys that a resumed run may have another value of: those that help against numbers that are not finite.
CHANGEABLE = ("train.learning_rate", "train.precision")


def is_run_of(folder: Path, recipe: Recipe) -> bool:
    """Whether the run in a folder was started with a recipe."""
    return (folder / RECIPE).read_text() == recipe_text(recipe)


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as the run's folder holds it."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False)


def without_changeable(raw: dict[str, Any]) -> str:
    """Write what has to be the same when a run is resumed."""
    for key in CHANGEABLE:
        part, name = key.split(".")
        raw[part].pop(name, None)
    return yaml.safe_dump(raw, sort_keys=False)


def read_log(path: Path) -> list[dict[str, float]]:
    """Read a run's log.csv: one dict an epoch."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
