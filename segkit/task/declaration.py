"""What a recipe declares about a task, and what follows directly: targets, categories, channels, map values."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from segkit.errors import TaskError
from segkit.task.classes import (
    BACKGROUND,
    BACKGROUND_COLOR,
    MAX_VALUE,
    LandCoverClass,
    map_dtype,
    map_nodata,
)
from segkit.task.colors import default_colors
from segkit.task.relations import Relation, find_relations

IGNORE = -1  # in targets: unlabelled


@dataclass(frozen=True)
class TaskDeclaration:
    """The fields of a `Task`, checked, and its layout of targets, categories and channels."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    type: Literal["binary", "multiclass", "multilabel"]
    classes: tuple[LandCoverClass, ...]
    head: Literal["softmax", "sigmoid"] | None = None
    background: bool | None = None
    background_value: int = 0
    never: tuple[tuple[str, ...], ...] = ()
    implies: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.type not in ("binary", "multiclass", "multilabel"):
            raise TaskError(f"task type {self.type!r} does not exist; use binary, multiclass or multilabel")
        if self.head not in (None, "softmax", "sigmoid"):
            raise TaskError(f"head {self.head!r} does not exist; use softmax or sigmoid")
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.head is None:
            object.__setattr__(self, "head", "sigmoid" if self.type == "multilabel" else "softmax")
        if self.background is None:
            object.__setattr__(self, "background", self.type != "multilabel")
        object.__setattr__(self, "never", tuple(map(tuple, self.never)))
        object.__setattr__(self, "implies", {name: tuple(others) for name, others in self.implies.items()})
        self._check_classes()
        self._check_combination()
        _ = self.relations  # checked, too

    def _check_classes(self) -> None:
        if not self.classes:
            raise TaskError("the task has no classes; list at least one under task.classes")
        if self.type == "binary" and len(self.classes) != 1:
            raise TaskError(
                f"a binary task has one class and background, found {len(self.classes)} classes; "
                "use type multiclass for mutually exclusive classes, multilabel for overlapping ones"
            )
        if self.type == "multiclass" and not self.background and len(self.classes) < 2:
            raise TaskError("a multiclass task without background needs at least two classes")
        for key in ("name", "value"):
            found = Counter(getattr(one, key) for one in self.classes)
            for duplicate in sorted(one for one, count in found.items() if count > 1):
                raise TaskError(f"two classes have the {key} {duplicate!r}; each class needs its own")
        if not 0 <= self.background_value <= MAX_VALUE:
            raise TaskError(f"background_value is {self.background_value}; it must lie between 0 and {MAX_VALUE}")
        for one in self.classes:
            if self.allows_no_class and one.value == self.background_value:
                without = ", or task.background: false if there is none" if self.type == "multiclass" else ""
                raise TaskError(
                    f"class {one.name!r} and background both have the value {one.value}; "
                    f"set task.background_value to the code of background{without}"
                )
            if self.allows_no_class and one.name == BACKGROUND:
                advice = "remove it" if self.background else "give the class another name"
                raise TaskError(
                    "'background' is listed as a class, but means ground in no class, which the task has by itself; "
                    + advice
                )

    def _check_combination(self) -> None:
        if self.type == "multilabel" and self.head == "softmax":
            raise TaskError(
                "softmax makes classes mutually exclusive, multilabel classes overlap; "
                "use head sigmoid, or type multiclass"
            )
        if self.type == "multilabel" and self.background:
            raise TaskError(
                "a multilabel task has no background category, pixels may be in no class; remove background"
            )
        if self.type == "binary" and not self.background:
            raise TaskError("a binary task decides between its class and background; remove background: false")
        if not self._decides_by_threshold:
            for one in self.classes:
                if one.threshold is not None:
                    raise TaskError(
                        f"class {one.name!r} has a threshold, but this task takes the highest probability; "
                        "remove it, or use head sigmoid with background"
                    )

    @functools.cached_property
    def relations(self) -> tuple[Relation, ...]:
        """The rules about overlapping classes that `never` and `implies` declare."""
        if (self.never or self.implies) and self.type != "multilabel":
            raise TaskError(
                f"task.never and task.implies are for overlapping classes, and those of a {self.type} task exclude "
                "each other; remove them, or use type multilabel"
            )
        return find_relations([one.name for one in self.classes], self.never, self.implies)

    @property
    def allows_no_class(self) -> bool:
        """Whether a pixel may be in no class at all."""
        return self.type == "multilabel" or bool(self.background)

    @property
    def _decides_by_threshold(self) -> bool:
        return self.allows_no_class and (self.head == "sigmoid" or self.type == "binary")

    @functools.cached_property
    def n_targets(self) -> int:
        """Number of independent decisions per pixel: 1 for mutually exclusive classes, else one per class."""
        return len(self.classes) if self.type == "multilabel" else 1

    @functools.cached_property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories of a target, in index order."""
        if self.type == "multilabel":
            return ("absent", "present")
        return ((BACKGROUND,) if self.background else ()) + tuple(one.name for one in self.classes)

    @functools.cached_property
    def channel_categories(self) -> tuple[tuple[int, int], ...]:
        """(target, category) of each channel."""
        if self.type == "multilabel":
            return tuple((target, 1) for target in range(self.n_targets))
        first = 1 if self.head == "sigmoid" and self.background else 0
        return tuple((0, category) for category in range(first, len(self.categories)))

    @property
    def channels(self) -> int:
        """Number of output channels of the network."""
        return len(self.channel_categories)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Name of the class (or background) whose probability each channel gives."""
        return tuple(
            self.classes[target].name if self.type == "multilabel" else self.categories[category]
            for target, category in self.channel_categories
        )

    @property
    def scored_categories(self) -> tuple[tuple[str, int, int], ...]:
        """(name, target, category) of everything that has an IoU: classes, and background if it is a category."""
        if self.type == "multilabel":
            return tuple((one.name, target, 1) for target, one in enumerate(self.classes))
        return tuple((name, 0, category) for category, name in enumerate(self.categories))

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Threshold of each class; None if the highest probability decides."""
        if not self._decides_by_threshold or (self.head == "softmax" and self.classes[0].threshold is None):
            return None
        return tuple(0.5 if one.threshold is None else one.threshold for one in self.classes)

    @property
    def thresholds_to_fit(self) -> tuple[bool, ...] | None:
        """Whether the recipe leaves each class's threshold open; None if the highest probability decides."""
        return None if self.thresholds is None else tuple(one.threshold is None for one in self.classes)

    def with_thresholds(self, values: Sequence[float]) -> Self:
        """Return this task with other thresholds, in class order.

        Raises
        ------
        TaskError
            The task cannot decide by threshold, or a value does not lie between 0 and 1.
        """
        pairs = zip(self.classes, values, strict=True)
        return replace(self, classes=tuple(replace(one, threshold=value) for one, value in pairs))

    @functools.cached_property
    def nodata(self) -> int:
        """No-data value of the map: 255, or 65535 if a class has a value of 255 or more."""
        return map_nodata(max(self.category_values))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the map."""
        return map_dtype(max(self.category_values))

    @functools.cached_property
    def category_values(self) -> tuple[int, ...]:
        """Map value of each category of a target."""
        if self.type == "multilabel":
            return (0, 1)
        return ((self.background_value,) if self.background else ()) + tuple(one.value for one in self.classes)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Descriptions of the map's bands, one per target."""
        return tuple(one.name for one in self.classes) if self.type == "multilabel" else ("class",)

    def map_values(self, decided: NDArray[np.integer[Any]], valid: NDArray[np.bool_]) -> NDArray[Any]:
        """Turn decided categories (T, H, W) into map values; no data where `valid` (H, W) is False."""
        values = np.array(self.category_values, dtype=self.dtype)[decided]
        return np.where(valid, values, np.array(self.nodata, dtype=self.dtype))

    @property
    def colors(self) -> dict[int, str] | None:
        """{value: "#rrggbb"} of a map with one band; None if it has several."""
        if self.n_targets > 1:
            return None
        rows = zip(self.scored_categories, self.legend, strict=True)
        return {self.category_values[category]: row["color"] for (_, _, category), row in rows}

    @functools.cached_property
    def legend(self) -> tuple[dict[str, Any], ...]:
        """Class table of the map: name, value and "#rrggbb" color; the row of background, if any, is marked."""
        none = {"name": BACKGROUND, "value": self.background_value, "color": BACKGROUND_COLOR, "background": True}
        colors = default_colors([one.name for one in self.classes], [one.color for one in self.classes])
        return ((none,) if self.background else ()) + tuple(
            {"name": one.name, "value": one.value, "color": color}
            for one, color in zip(self.classes, colors, strict=True)
        )
