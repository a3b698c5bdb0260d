"""Variants of a recipe: combinations of values of some keys, and a plan of the trainings."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from segkit.data.areas import with_fold
from segkit.errors import RecipeError, UsageError
from segkit.models.model_file import read_header
from segkit.models.run_folder import CHANGEABLE, MODEL, RECIPE, changes_of, is_run_of
from segkit.recipe.schema import Recipe
from segkit.recipe.yaml import parse_yaml, set_at


@dataclass(frozen=True, eq=False)
class TrialPlan:
    """A training of a variant with a seed, in a fold."""

    variant: str
    seed: int
    fold: str | None
    recipe: Recipe
    folder: Path

    @property
    def started(self) -> bool:
        """Whether the folder holds a run."""
        return (self.folder / RECIPE).is_file()

    @property
    def same_recipe(self) -> bool:
        """Whether the run in the folder is of this recipe."""
        return is_run_of(self.folder, self.recipe)

    @property
    def finished(self) -> bool:
        """Whether the run is of this recipe and complete: it has a model, which is not that of fewer planned epochs."""
        model = self.folder / MODEL
        if not (self.started and self.same_recipe and model.is_file()):
            return False
        epochs = read_header(model).metrics.get("epochs")
        return epochs is None or bool(epochs["planned"] == self.recipe.train.epochs)

    @property
    def resumable(self) -> bool:
        """Whether the run in the folder can be continued with this recipe, which may have more epochs."""
        return changes_of(self.folder, self.recipe).keys() <= {*CHANGEABLE}


def parse_vary(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Parse texts like ``"train.learning_rate=1e-3,1e-4"``: a key of the recipe and its values as YAML.

    Raises
    ------
    UsageError
        There is no "=" or no value, or a key occurs twice.
    RecipeError
        The values are not YAML.
    """
    vary: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not values or not all(key.split(".")):
            raise UsageError(f"--vary {text}: write it as key=value,value, for example model.encoder=resnet18,resnet34")
        if key in vary:
            raise UsageError(f"--vary {key} is given twice; give all its values at once")
        vary[key] = parse_yaml(f"[{values}]", f"--vary {text}")
    return vary


def plan_trials(
    base: Recipe,
    folder: Path,
    heads: Sequence[str],
    vary: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    folds: Sequence[str],
) -> list[TrialPlan]:
    """Return the plans of all trainings, ordered by fold, seed and variant."""
    if base.train.devices != 1 or base.train.num_nodes != 1:
        raise UsageError(
            "compare trains on one device, so that times are comparable; set train.devices and train.num_nodes to 1"
        )
    choices: dict[str, Sequence[Any]] = ({"task.head": heads} if heads else {}) | dict(vary)
    for what, values in {"seeds": seeds, "folds": folds, **choices}.items():
        texts = [format_value(value) for value in values]
        if what != "folds" and not texts:
            raise UsageError(f"{what}: has no value; give one or more")
        for text in texts:
            if texts.count(text) > 1:
                raise UsageError(f"{what}: {text} is given twice; give each value once")
    variants: dict[str, Recipe] = {}
    for values in itertools.product(*choices.values()):
        changes = dict(zip(choices, values, strict=True))
        variants[_variant_name(changes) or base.name] = with_changes(base, changes)
    slugs = _folder_names(variants)
    plans = []
    for fold, seed in itertools.product(folds or (None,), seeds):
        for name, recipe in variants.items():
            seeded = with_changes(recipe, {"train.seed": seed})
            run_folder = folder / slugs[name] / (f"seed{seed}" + (f"-fold{fold.replace('/', 'of')}" if fold else ""))
            plans.append(TrialPlan(name, seed, fold, with_fold(seeded, fold) if fold else seeded, run_folder))
    return plans


def variant_names(plans: Sequence[TrialPlan]) -> list[str]:
    """Return the names of the variants in order."""
    return list(dict.fromkeys(plan.variant for plan in plans))


def _variant_name(changes: Mapping[str, Any]) -> str:
    """Return a variant's name: the head, and ``key=value`` for other keys, with only the key's end if it is unique."""
    ends = Counter(key.rpartition(".")[2] for key in changes)
    parts = []
    for key, value in changes.items():
        end = key.rpartition(".")[2]
        parts.append(
            format_value(value) if key == "task.head" else f"{end if ends[end] == 1 else key}={format_value(value)}"
        )
    return ", ".join(parts)


def format_value(value: Any) -> str:
    """Return a value of the recipe as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _folder_names(names: Iterable[str]) -> dict[str, str]:
    """Return {variant: folder name}, unique also on file systems that ignore case."""
    slugs = {name: re.sub(r"[^\w.=+-]+", "-", name).strip("-.")[:80] for name in names}
    counts = Counter(slug.casefold() for slug in slugs.values())
    return {
        name: slug if slug and counts[slug.casefold()] == 1 else f"{slug}-{sha256(name.encode()).hexdigest()[:8]}"
        for name, slug in slugs.items()
    }


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with some keys changed."""
    raw: Any = recipe.to_dict()
    for key, value in changes.items():
        path = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        try:
            set_at(raw, path, value, key)
        except RecipeError as error:
            raise RecipeError(f"{key}={format_value(value)}: the recipe has no such key; see segkit schema") from error
    try:
        return Recipe.from_dict(raw)
    except RecipeError as error:
        text = ", ".join(f"{key}={format_value(value)}" for key, value in changes.items())
        raise RecipeError(f"{text}: {str(error).removeprefix('recipe: ')}") from error
