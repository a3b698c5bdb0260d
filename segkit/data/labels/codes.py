"""Labels in rasters of class codes, or of one 0/1 mask per class."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.data.labels.base import COUNT_WINDOW_PX, PartialLabels
from segkit.data.labels.label_file import LabelFile
from segkit.errors import DataError, LabelError
from segkit.io.class_table import Legend, format_color, parse_color
from segkit.io.raster import open_raster
from segkit.recipe.label_source import LabelSource
from segkit.runtime.tables import list_some
from segkit.task import BACKGROUND, Task

# They differ from every code of a label raster.
_UNLABELLED = int(np.iinfo(np.int64).min)
_OTHER = _UNLABELLED + 1  # in `values`: all codes that are not listed


@dataclass(frozen=True, eq=False)
class _CodeLabels(PartialLabels):
    """Class values, or codes of the table `values`, in one band; or a 0/1 mask for each of `classes`."""

    file: LabelFile
    ignore: tuple[int, ...]
    classes: tuple[str, ...]
    values: dict[int, str | None] | None

    def _read(self, window: Window) -> NDArray[Any]:
        if len(self.file.bands) > 1 or len(self.classes) < len(self.task.classes):
            return super()._read(window)
        return self._encode(self.task.encode, window)

    def _partial_labels(self, window: Window) -> NDArray[np.int16]:
        if len(self.file.bands) > 1:
            ignore = (*self.ignore, _UNLABELLED)
            classes = self.classes if len(self.classes) < len(self.task.classes) else None
            try:
                return self.task.partial_labels_from_masks(
                    self._codes(window), ignore=ignore, classes=classes, source=self.name
                )
            except LabelError as error:
                advice = _describe_picture(self.file, self.classes)
                if advice is None:
                    raise
                raise LabelError(f"{self.name}: {advice}") from error
        return self._encode(functools.partial(self.task.partial_labels, classes=self.classes), window)

    def _encode(self, encode: Callable[..., NDArray[np.int16]], window: Window) -> NDArray[np.int16]:
        encode = functools.partial(encode, ignore=(*self.ignore, _UNLABELLED), values=self.values, source=self.name)
        codes = self._codes(window)[0]
        if self.values is not None and _OTHER in self.values:
            codes = np.where(np.isin(codes, [*self.values, *self.ignore, _UNLABELLED]), codes, _OTHER)
        try:
            return encode(codes)
        except LabelError:
            # Raise the error again for the whole file, so that it lists all codes and pixels.
            counts = _count_values(self._codes(part)[0] for part in self.grid.tiles(COUNT_WINDOW_PX))
            if advice := self._advise(counts):
                raise LabelError(f"{self.name}: {advice}") from None
            found, pixels = np.array([*counts.items()], dtype=np.int64).T
            return encode(found[None], pixels=pixels[None])

    def _advise(self, counts: Mapping[int, int]) -> str | None:
        """Return a message about codes that are not defined if it can say more than `Task.encode`."""
        known = {*self.ignore, _UNLABELLED, self.task.background_value}
        others = [code for code in counts if code not in known]
        if self.values is not None or len(self.classes) > 1 or not self.task.allows_no_class or len(others) != 1:
            return None
        [code], [name] = others, self.classes
        if self.task.background_value not in counts or any(code == one.value for one in self.task.classes):
            return None  # not a mask, or of a class that these labels do not cover
        background = self.task.background_value
        return (
            f"code {code} ({counts[code]} pixels) is not defined; the only other code is {background} (background). "
            f'If {code} is {name}, set labels.values: {{"{background}": background, "{code}": {name}}}; if it means '
            "unlabelled, add it to data.ignore"
        )

    def _codes(self, window: Window) -> NDArray[np.int64]:
        values, masked = self.file.read(window)
        if values.dtype.kind == "f":
            fractional = ~masked & ~(np.isfinite(values) & (values == np.rint(values)))
            if fractional.any():
                raise LabelError(
                    f"{self.name}: {int(fractional.sum())} pixels have values such as {values[fractional][0]:g}; label "
                    "codes are whole numbers: is this a map of fractions (labels.fractions: true), or resampled with "
                    "averages?"
                )
        return np.where(masked, _UNLABELLED, np.where(masked, 0, values).astype(np.int64))


@dataclass(frozen=True, eq=False)
class _ColorLabels(_CodeLabels):
    """Colours as codes, red * 65536 + green * 256 + blue; `palette` has those of a band of numbers.

    A pixel is unlabelled if the file masks all of its bands.
    """

    palette: NDArray[np.int64] | None = None

    def _read(self, window: Window) -> NDArray[Any]:
        return PartialLabels._read(self, window)

    def _partial_labels(self, window: Window) -> NDArray[np.int16]:
        return self._encode(functools.partial(self.task.partial_labels, classes=self.classes), window)

    def _codes(self, window: Window) -> NDArray[np.int64]:
        values, masked = self.file.read(window)
        if self.palette is None:
            colors = (values.astype(np.int64) << np.array([16, 8, 0])[:, None, None]).sum(axis=0, keepdims=True)
        else:
            # Numbers beyond the palette get a colour that no table has.
            known = values < len(self.palette)
            colors = np.where(known, self.palette[np.where(known, values, 0)], -1)
        return np.where(masked.all(axis=0), _UNLABELLED, colors)

    def _advise(self, counts: Mapping[int, int]) -> str | None:
        assert self.values is not None
        unknown = {color: number for color, number in counts.items() if color not in {*self.values, _UNLABELLED}}
        return (
            f"{_list_colors(unknown)} are not in labels.values, which lists "
            f"{', '.join(map(_color_text, self.values))}; add them (null: unlabelled)"
        )


def _count_values(parts: Iterable[NDArray[np.int64]]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for part in parts:
        codes, numbers = np.unique(part, return_counts=True)
        counts.update(dict(zip(codes.tolist(), numbers.tolist(), strict=True)))
    return counts


def _color_text(color: int) -> str:
    return format_color(color >> 16, color >> 8 & 255, color & 255) if color >= 0 else "without a colour"


def _list_colors(counts: Mapping[int, int], maximum: int = 5) -> str:
    """List colours with their pixels, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda each: -each[1])
    listed = list_some([f"{_color_text(color)} ({number} pixels)" for color, number in ordered], maximum)
    return f"the colours {listed}"


def _describe_picture(file: LabelFile, classes: Sequence[str]) -> str | None:
    """Return a message if a raster that should have a mask of 0 and 1 per class is a picture or has other masks."""
    with open_raster(file.path) as dataset:
        is_byte = all(dataset.dtypes[band - 1] == "uint8" for band in file.bands)
    if not is_byte:
        return None
    values = (file.read(window)[0].astype(np.int64) for window in file.grid.tiles(COUNT_WINDOW_PX))
    advice = []
    if len(file.bands) == 3:
        shifts = np.array([16, 8, 0])[:, None, None]
        counts = _count_values((part << shifts).sum(axis=0) for part in values)
        levels = {level for color in counts for level in (color >> 16, color >> 8 & 255, color & 255)}
        example = _color_text(max(counts, key=counts.__getitem__))
        advice.append(
            f"has three bands; if they are red, green and blue, it has {_list_colors(counts)}: name the class of each "
            f'in labels.values: {{"{example}": {classes[0]}, ...}}'
        )
    else:
        levels = {*_count_values(values)}
    if 1 in levels and len(levels) < 5:  # masks of 0 and 1 with other codes
        return None
    if levels == {0, 255} and len(file.bands) == len(classes):
        advice.append(
            ("" if advice else "has the values 0 and 255; ")
            + "if each band is the mask of a class, set labels.fractions: true and labels.full_value: 255"
        )
    return "; ".join(advice) or None


def open_codes(
    file: LabelFile,
    source: LabelSource,
    task: Task,
    ignore: Sequence[int],
    classes: tuple[str, ...],
    notes: list[str],
) -> _CodeLabels:
    """Open a raster of class codes, or of one mask per class.

    Raises
    ------
    LabelError
        `values` of the source does not fit the file or the task.
    """
    path, in_color = file.path, any(key.startswith("#") for key in source.values or ())
    if source.other_values is not None and len(file.bands) > 1 and not in_color:
        raise LabelError(
            f"{path}: other_values is only for rasters with one band of codes, this has {len(file.bands)} bands; "
            "remove it"
        )
    if in_color:
        return _open_colors(file, source, task, ignore, classes, notes)
    values = _value_table(path, source, file.bands)
    codes: Mapping[int, str | None] = {0: "the code of absent classes", 1: "the code of present classes"}
    if len(file.bands) == 1:
        named = {row["value"]: row["name"] for row in task.legend} if values is None else values
        codes = {code: f"the code of {name}" for code, name in named.items() if name}
    as_code = next((codes[code] for code in codes if code == file.nodata and code not in ignore), None)
    file, ambiguities = file.interpret_nodata(as_code, source)
    if source.other_values is not None:
        values = _with_others(values if values is not None else _default_table(task, classes), source)
    return _CodeLabels(
        str(path), file.grid, task, tuple(notes), False, file, tuple(ignore), classes, values, ambiguities=ambiguities
    )


def _open_colors(
    file: LabelFile,
    source: LabelSource,
    task: Task,
    ignore: Sequence[int],
    classes: tuple[str, ...],
    notes: list[str],
) -> _ColorLabels:
    """Open a raster of colours, or of numbers with a colour table."""
    path, palette = file.path, None
    _refuse_full_value(path, source)
    values = {}
    for key, name in (source.values or {}).items():
        try:
            red, green, blue = parse_color(key)
        except ValueError as error:
            raise LabelError(f"{path}: labels.values lists colours, and also {key!r}; write all as #rrggbb") from error
        values[red << 16 | green << 8 | blue] = name
    if source.other_values is not None:
        values = _with_others(values, source)
    with open_raster(path) as dataset:
        if len(file.bands) == 1:
            palette = _read_palette(path, dataset)
        elif len(file.bands) != 3 or any(dataset.dtypes[band - 1] != "uint8" for band in file.bands):
            raise LabelError(
                f"{path}: labels.values lists colours, but the file does not have red, green and blue as bytes (it has "
                f"{dataset.count} bands, {dataset.dtypes[0]}); list its codes"
            )
    as_code = None
    if file.nodata is not None:
        gray = int(file.nodata) if palette is None else 0
        color = (
            int(palette[int(file.nodata)])
            if palette is not None and 0 <= file.nodata < len(palette)
            else gray * 0x10101
        )
        as_code = f"the colour {_color_text(color)}" if values.get(color) else None
    file, ambiguities = file.interpret_nodata(as_code, source, in_all_bands=True)
    return _ColorLabels(
        str(path), file.grid, task, tuple(notes), False, file, (), classes, values, ambiguities=ambiguities,
        palette=palette,
    )  # fmt: skip


def _read_palette(path: Path, dataset: DatasetReader) -> NDArray[np.int64]:
    """Return the colours of the values of a band, as in `_ColorLabels`."""
    try:
        entries = dataset.colormap(1)
    except ValueError as error:
        raise LabelError(
            f"{path}: labels.values lists colours, but its band has no colour table; list its codes"
        ) from error
    return np.array([r << 16 | g << 8 | b for _, (r, g, b, *_) in sorted(entries.items())], dtype=np.int64)


def _refuse_full_value(path: Path, source: LabelSource) -> None:
    if source.full_value != 1:
        raise LabelError(f"{path}: full_value is only for fractions (labels.fractions: true); remove it")


def _value_table(path: Path, source: LabelSource, bands: Sequence[int]) -> dict[int, str | None] | None:
    """Return {code: class name} of a source, None if it has no `values`."""
    _refuse_full_value(path, source)
    if source.values is None:
        return None
    if len(bands) > 1:
        raise LabelError(
            f"{path}: values is only for rasters with one band of codes, this has {len(bands)} bands; remove it"
        )
    names = [key for key in source.values if not re.fullmatch("0|-?[1-9][0-9]*", key)]
    codes = _codes_by_name(path) if names else {}
    for name in names:
        if name not in codes:
            listed = f" or names of its own classes ({', '.join(codes)})" if codes else ""
            raise LabelError(f"{path}: labels.values lists {name!r}; raster codes are whole numbers{listed}")
    return {int(codes.get(key, key)): name for key, name in source.values.items()}


def _default_table(task: Task, classes: Sequence[str]) -> dict[int, str | None]:
    """Return {code: class name} of a raster without `values`."""
    table: dict[int, str | None] = {task.background_value: BACKGROUND} if task.allows_no_class else {}
    return table | {one.value: one.name for one in task.classes if one.name in classes}


def _with_others(values: Mapping[int, str | None], source: LabelSource) -> dict[int, str | None]:
    """Return a table of codes with the meaning of all other codes."""
    return {**values, _OTHER: BACKGROUND if source.other_values == BACKGROUND else None}


def _codes_by_name(path: Path) -> dict[str, int]:
    """Return the codes that a raster itself names, in a table of segkit, of attributes or of categories."""
    with open_raster(path) as dataset:
        try:
            legend = Legend.from_dataset(dataset)
        except DataError:
            return {}
    return {one.name: value for value, one in legend.value_table.items() if one.name != str(value)}
