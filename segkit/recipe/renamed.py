"""Renamed keys: the old spelling works for one more release."""

from __future__ import annotations

import warnings
from typing import Any

from segkit.errors import RecipeError

Location = tuple[str | int, ...]

# {section: {key in segkit 0.2: key now}}
_RENAMED = {
    "data": {"scaled": "apply_scale_offset"},
    "labels": {"whole": "full_value", "outside": "outside_polygons"},
    "train": {"steps": "steps_per_epoch", "oversample": "class_balanced_sampling", "keep": "checkpoint"},
}
# Keys of train; a recipe written by hand hardly has all of them.
_STORED = {"weight_decay", "warmup", "label_smoothing", "devices", "num_nodes", "strategy", "workers", "tensorboard"}


def old_keys(place: Location) -> dict[str, str]:
    """Return {old key: new key} of the keys at a place of the recipe."""
    return _RENAMED.get(_section(place) or "", {})


def new_place(place: Location) -> Location:
    """Return the place of a key under its new name."""
    return (*place[:-1], old_keys(place[:-1]).get(str(place[-1]), place[-1]))


def rename_keys(raw: Any, source: str, *, warn: bool, place: Location = ()) -> Any:
    """Return a raw recipe with the new keys, in the old order.

    Parameters
    ----------
    raw
        A recipe as read from YAML or JSON, or the part of it at `place`.
    source
        Named in errors.
    warn
        Whether to warn about each old key.

    Raises
    ------
    RecipeError
        A key is given under both names.
    """
    if isinstance(raw, list | tuple):
        return [rename_keys(each, source, warn=warn, place=(*place, number)) for number, each in enumerate(raw)]
    if not isinstance(raw, dict):
        return raw
    found, renamed = old_keys(place), {}
    for key, value in raw.items():
        new = found.get(key, key)
        if new != key:
            if new in raw:
                where = ".".join(map(str, place))
                raise RecipeError(f"{source}: {where}.{key} is the old name of {where}.{new}; remove one of them")
            if warn:
                warn_about((*place, key))
        renamed[new] = rename_keys(value, source, warn=warn, place=(*place, key))
    return renamed


def warn_about(place: Location) -> None:
    """Warn if a place names a key by its old name."""
    new = new_place(place)
    if new != place:
        section = _section(place[:-1])
        warnings.warn(f"{section}.{place[-1]} is now called {section}.{new[-1]}", stacklevel=1)


def is_stored(raw: Any) -> bool:
    """Whether a raw recipe was stored by a training: it has all these keys, also those with default values."""
    train = raw.get("train") if isinstance(raw, dict) else None
    return isinstance(train, dict) and train.keys() >= _STORED


def _section(place: Location) -> str | None:
    names = [part for part in place if not isinstance(part, int)]
    if len(names) == 3 and names[0] == "data" and names[2] == "labels":
        return "labels"
    return str(names[0]) if len(names) == 1 and names[0] in _RENAMED else None
