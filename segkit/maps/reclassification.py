"""Reclassify a map: classes merged, renamed and recoloured, and changed where another map or polygons say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import UsageError
from segkit.io.class_table import Legend, MapClass, class_rgb, format_color, map_tags
from segkit.io.cog import MapProfile, MapStrip, build_cog, open_strip_writer
from segkit.io.files import check_distinct, check_output, temporary_folder
from segkit.io.paths import PathLike
from segkit.io.raster import open_raster, read_grid, read_mask, read_window
from segkit.maps.class_changes import ClassChanges, NewClass, find_class
from segkit.maps.class_map import whole_rows
from segkit.maps.rules import NO_DATA, InRegion, Rule, find_new_class, open_region
from segkit.runtime.progress import progress
from segkit.task.classes import map_dtype, map_nodata
from segkit.task.unique import unique_codes

MAX_STRIP_PIXELS = 2**22  # of all bands
_KEPT_TAGS = ("segkit_model", "segkit_model_files")  # where the map is from
_ABSENT, _PRESENT, _UNKNOWN = 0, 1, 255  # in a band of a multilabel map


@dataclass(frozen=True)
class RuleCount:
    """A rule, the pixels that it changed, and those of its class at which the other map has no data; they stay."""

    rule: Rule
    changed: int
    unknown: int


@dataclass(frozen=True)
class Reclassified:
    """A reclassified map.

    Parameters
    ----------
    path
        The map.
    classes
        Its classes.
    pixels
        {class: pixels}.
    rules
        What each rule changed.
    """

    path: Path
    classes: tuple[MapClass, ...]
    pixels: dict[str, int]
    rules: tuple[RuleCount, ...] = ()


def reclassify_map(
    path: PathLike,
    output: PathLike,
    changes: ClassChanges,
    *,
    rules: Sequence[Rule] = (),
    class_names: PathLike | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Reclassified:
    """Write a map with other classes; see `segkit.reclassify`.

    Raises
    ------
    SegkitError
        As `segkit.reclassify`.
    """
    target = check_output(output, overwrite=overwrite)
    check_distinct([target], [path, class_names, *(rule.path for rule in rules)])
    with ExitStack() as stack:
        dataset = stack.enter_context(open_raster(path))
        legend, grid = Legend.from_dataset(dataset, class_names), read_grid(dataset)
        if legend.multilabel:
            _refuse_for_multilabel(path, changes, rules)
            classes = legend.classes
        else:
            classes = all_classes(dataset, legend, show_progress=show_progress)
            classes += _classes_of_rules(rules, classes, changes)
        found = changes.apply(classes, str(path))
        open_regions = stack.enter_context(ExitStack())
        regions = [open_regions.enter_context(open_region(rule, grid)) for rule in rules]
        if legend.multilabel:
            converter: _Bands | _Codes = _Bands(found)
        else:
            converter = _Codes(str(path), classes, found, list(zip(rules, regions, strict=True)))
        profile = map_profile(path, dataset, legend, [new.one for new in found], "segkit_reclassified")
        folder = stack.enter_context(temporary_folder(target.parent, target.name))
        strip = folder / "map.tif"
        with (
            open_strip_writer(strip, grid, profile) as writer,
            progress("reclassify", grid.height, "rows", show=show_progress) as advance,
        ):
            for window in whole_rows(dataset, MAX_STRIP_PIXELS // dataset.count):
                writer.write(converter.convert(dataset, window), window)
                advance(window.height)
        open_regions.close()  # raises an error for a class that a region does not have
        build_cog(target, grid, profile, [MapStrip(strip, 0)], overwrite=overwrite)
    names = [new.one.name for new in found]
    pixels = dict(zip(names, converter.pixels.tolist(), strict=True))
    return Reclassified(target, tuple(new.one for new in found), pixels, converter.rule_counts())


def _refuse_for_multilabel(path: PathLike, changes: ClassChanges, rules: Sequence[Rule]) -> None:
    if changes.values or rules:
        what = "rules" if rules else "values"
        raise UsageError(f"{path}: its classes overlap, in a band of 0 and 1 each, so {what} are not possible")


def all_classes(dataset: DatasetReader, legend: Legend, *, show_progress: bool) -> tuple[MapClass, ...]:
    """Return the classes that the legend lists, and those of values that only occur in the map."""
    codes: set[int] = set()
    with progress("classes", dataset.height, "rows", show=show_progress) as advance:
        for window in whole_rows(dataset, MAX_STRIP_PIXELS // dataset.count):
            values = read_window(dataset, [1], window)[0]
            codes |= set(unique_codes(values[read_mask(dataset, 1, window) > 0])[0].tolist())
            advance(window.height)
    listed = {one.value for one in legend.classes}
    return (*legend.classes, *(legend.class_of(1, code) for code in sorted(codes - listed)))


def _classes_of_rules(
    rules: Sequence[Rule], classes: Sequence[MapClass], changes: ClassChanges
) -> tuple[MapClass, ...]:
    """Return the classes to which rules lead, and whose only mention is their new value."""
    names = {one.name for one in classes} | {NO_DATA}
    new = dict.fromkeys(rule.new for rule in rules if rule.new not in names and rule.new in changes.values)
    return tuple(MapClass(name, changes.values[name]) for name in new)


def map_profile(
    path: PathLike, dataset: DatasetReader, legend: Legend, classes: Sequence[MapClass], tag: str
) -> MapProfile:
    """Return the profile of a map with these classes; the tag says how it was made from the map at `path`."""
    rows: list[Mapping[str, Any]] = [
        {key: value for key, value in asdict(one).items() if value is not None} for one in classes
    ]
    tags = dataset.tags()
    kind = tags.get("segkit_type", "multiclass")
    kept = {key: tags[key] for key in _KEPT_TAGS if key in tags} | {tag: str(path)}
    if legend.multilabel:
        names = tuple(one.name for one in classes)
        return MapProfile(np.dtype("uint8"), _UNKNOWN, names, map_tags(kind, rows) | kept)
    largest = max((one.value for one in classes), default=0)  # a map that is all no data may have none
    dtype = map_dtype(largest)
    named = (dataset.descriptions[0] or "class",)
    colors = {one.value: format_color(*class_rgb(one)) for one in classes} if dtype == np.uint8 else None
    return MapProfile(dtype, map_nodata(largest), named, map_tags(kind, rows) | kept, colors)


class _Codes:
    """Converts the values of a map whose classes exclude each other, and counts pixels."""

    def __init__(
        self,
        owner: str,
        classes: Sequence[MapClass],
        found: Sequence[NewClass],
        rules: Sequence[tuple[Rule, InRegion]],
    ) -> None:
        in_order = np.argsort([one.value for one in classes])
        self._codes = np.array([one.value for one in classes], dtype=np.int64)[in_order]
        self._old = in_order  # position in `classes` of each of these codes
        self._nodata = map_nodata(max(new.one.value for new in found))
        # By position of the old class; the last one is no data.
        self._new = np.full(len(classes) + 1, len(found), dtype=np.int64)
        for at, new in enumerate(found):
            self._new[list(new.members)] = at
        self._values = np.array([*(new.one.value for new in found), self._nodata])
        self._rules = [
            (rule, find_class(classes, rule.old, owner), find_new_class(rule, classes, owner), region)
            for rule, region in rules
        ]
        self._counts = np.zeros((len(rules), 2), dtype=np.int64)
        self.pixels = np.zeros(len(found), dtype=np.int64)

    def convert(self, dataset: DatasetReader, window: Window) -> NDArray[Any]:
        """Return the new values (1, H, W) of a window."""
        values, valid = read_window(dataset, [1], window)[0], read_mask(dataset, 1, window) > 0
        codes, position = unique_codes(values)
        known = np.isin(codes, self._codes)
        old = np.where(known, self._old[np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)], -1)[
            position
        ]
        no_class = len(self._new) - 1
        old = np.where(valid, old, no_class)
        for number, (_, before, after, region) in enumerate(self._rules):
            chosen = old == before
            if not chosen.any():
                continue
            inside, is_known = region(window)
            changed = chosen & is_known & (inside if self._rules[number][0].inside else ~inside)
            old[changed] = no_class if after is None else after
            self._counts[number] += int(changed.sum()), int((chosen & ~is_known).sum())
        new = self._new[old]
        self.pixels += np.bincount(new.ravel(), minlength=len(self._values))[:-1]
        return self._values[new][None]

    def rule_counts(self) -> tuple[RuleCount, ...]:
        """Return what the rules changed."""
        return tuple(
            RuleCount(rule, *counts) for (rule, *_), counts in zip(self._rules, self._counts.tolist(), strict=True)
        )


class _Bands:
    """Converts the bands of a multilabel map: a merged class is present where one of its classes is."""

    def __init__(self, found: Sequence[NewClass]) -> None:
        self._found = found
        self.pixels = np.zeros(len(found), dtype=np.int64)

    def convert(self, dataset: DatasetReader, window: Window) -> NDArray[np.uint8]:
        """Return the new bands (classes, H, W) of a window."""
        stored = read_window(dataset, dataset.indexes, window)
        valid = np.stack([read_mask(dataset, band, window) > 0 for band in dataset.indexes])
        result = np.full((len(self._found), *stored.shape[1:]), _ABSENT, dtype=np.uint8)
        for number, new in enumerate(self._found):
            at = list(new.members)
            present = (valid[at] & (stored[at] == _PRESENT)).any(axis=0)
            result[number][~valid[at].all(axis=0)] = _UNKNOWN
            result[number][present] = _PRESENT
            self.pixels[number] += int(present.sum())
        return result

    def rule_counts(self) -> tuple[RuleCount, ...]:
        """Return nothing: there are no rules for overlapping classes."""
        return ()
