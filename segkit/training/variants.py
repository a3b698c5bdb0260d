"""Variants of a recipe: which values of which keys are compared."""

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
from segkit.models.run_folder import MODEL, RECIPE, is_run_of
from segkit.recipe.schema import Recipe
from segkit.recipe.yaml import parse_yaml, put


@dataclass(frozen=True, eq=False)
class TrialPlan:
    """A training to be done."""

    variant: str
    seed: int
    fold: str | None
    recipe: Recipe
    folder: Path

    @property
    def started(self) -> bool:
        """Whether there is a run."""
        return (self.folder / RECIPE).is_file()

    @property
    def same(self) -> bool:
        """Whether what is there is of this recipe."""
        return is_run_of(self.folder, self.recipe)

    @property
    def finished(self) -> bool:
        """Whether the run is of this recipe and complete."""
        return self.started and self.same and (self.folder / MODEL).is_file()


def parse_vary(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Read ``"train.learning_rate=1e-3,1e-4"`` and the like: a key of the recipe and its values as YAML.

    Raises
    ------
    UsageError
        There is no "=", no value, or the key stands twice.
    RecipeError
        The values are not YAML.
    """
    vary: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not values or not all(key.split(".")):
            raise UsageError(f"--vary {text}: write it as key=value,value, for example model.encoder=resnet18,resnet34")
        if key in vary:
            raise UsageError(f"--vary {key} stands twice; name all its values in one")
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
    """Make all recipes; variants follow each other most quickly."""
    if base.train.devices != 1 or base.train.num_nodes != 1:
        raise UsageError("compare trains on one device, so that times compare; set train.devices and num_nodes to 1")
    choices: dict[str, Sequence[Any]] = ({"task.head": heads} if heads else {}) | dict(vary)
    for what, values in {"seeds": seeds, "folds": folds, **choices}.items():
        told = [format_value(value) for value in values]
        if what != "folds" and not told:
            raise UsageError(f"{what}: no value is given; name one or more")
        for value in told:
            if told.count(value) > 1:
                raise UsageError(f"{what}: {value} stands twice; name each value once")
    variants: dict[str, Recipe] = {}
    for values in itertools.product(*choices.values()):
        changes = dict(zip(choices, values, strict=True))
        variants[_name(changes) or base.name] = changed_keys(base, changes)
    slugs = _folder_names(variants)
    plans = []
    for fold, seed in itertools.product(folds or (None,), seeds):
        for name, recipe in variants.items():
            seeded = changed_keys(recipe, {"train.seed": seed})
            place = folder / slugs[name] / (f"seed{seed}" + (f"-fold{fold.replace('/', 'of')}" if fold else ""))
            plans.append(TrialPlan(name, seed, fold, with_fold(seeded, fold) if fold else seeded, place))
    return plans


def variant_names(plans: Sequence[TrialPlan]) -> list[str]:
    """Return the variants' names in their order."""
    return list(dict.fromkeys(plan.variant for plan in plans))


def _name(changes: Mapping[str, Any]) -> str:
    """Call a variant by what it changes: a head by its name, others by the end of their key where that is enough."""
    ends = Counter(key.rpartition(".")[2] for key in changes)
    parts = []
    for key, value in changes.items():
        end = key.rpartition(".")[2]
        parts.append(
            format_value(value) if key == "task.head" else f"{end if ends[end] == 1 else key}={format_value(value)}"
        )
    return ", ".join(parts)


def format_value(value: Any) -> str:
    """Write a value of the recipe as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _folder_names(names: Iterable[str]) -> dict[str, str]:
    """Return a folder's name for each variant, different on every file system."""
    slugs = {name: re.sub(r"[^\w.=+-]+", "-", name).strip("-.")[:80] for name in names}
    often = Counter(slug.casefold() for slug in slugs.values())
    return {
        name: slug if slug and often[slug.casefold()] == 1 else f"{slug}-{sha256(name.encode()).hexdigest()[:8]}"
        for name, slug in slugs.items()
    }


def changed_keys(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with other values at some keys."""
    raw: Any = recipe.to_dict()
    for key, value in changes.items():
        place = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        try:
            put(raw, place, value, key)
        except RecipeError as error:
            raise RecipeError(
                f"{key}={format_value(value)}: the recipe has no such place; see segkit schema"
            ) from error
    try:
        return Recipe.from_dict(raw)
    except RecipeError as error:
        told = ", ".join(f"{key}={format_value(value)}" for key, value in changes.items())
        raise RecipeError(f"{told}: {str(error).removeprefix('recipe: ')}") from error
