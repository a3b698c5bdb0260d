"""Propose the task of label rasters: class codes, colours, or a mask for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from segkit.data.drafting.label_draft import MAX_CLASSES, LabelDraft, class_rows, is_background, is_unlabelled
from segkit.data.labels.base import COUNT_WINDOW_PX
from segkit.errors import DataError, LabelError
from segkit.io.class_table import Legend, MapClass, format_color
from segkit.io.raster import open_raster, read_grid, read_window
from segkit.plots.text import format_percent
from segkit.runtime.progress import progress

_SPARSE_SHARE = 0.9  # of the pixels: if more of them are 0, a 0 means that nobody looked
_MASK_BITS = 0x10101  # of a colour: three masks of 0 and 1, which as colours would all be black
_UNLABELLED_CODES = (255, 65535)
_COLOR_NAMES = {
    "#ff0000": "red", "#00ff00": "green", "#0000ff": "blue", "#ffff00": "yellow", "#00ffff": "cyan",
    "#ff00ff": "magenta", "#ffffff": "white", "#808080": "grey", "#ffa500": "orange", "#800080": "purple",
    "#a52a2a": "brown", "#000000": "black", "#008000": "dark_green", "#800000": "dark_red", "#000080": "dark_blue",
}  # fmt: skip


@dataclass
class CodeCounts:
    """Values of label rasters.

    Parameters
    ----------
    bands
        Number of label bands, without alpha.
    dtype, band_names
        Of the first file.
    nodata
        The declared no-data value; its pixels are counted like others.
    counts
        {code: pixels}; of colours {red * 65536 + green * 256 + blue: pixels}; of masks of each class all values.
    """

    path: Path
    bands: int
    dtype: str
    band_names: tuple[str | None, ...]
    nodata: float | None
    table: Mapping[int, MapClass]
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def in_color(self) -> bool:
        """Whether the bands are red, green and blue."""
        return self.bands == 3 and self.dtype == "uint8"


def count_codes(paths: Sequence[Path], *, show_progress: bool) -> CodeCounts:
    """Read label rasters once and count their values.

    Raises
    ------
    LabelError
        They have different numbers of bands, values that are not whole numbers, or too many values for classes.
    """
    found: CodeCounts | None = None
    with progress("labels", len(paths), "files", show=show_progress) as advance:
        for path in paths:
            with open_raster(path) as dataset:
                bands = [band for band in dataset.indexes if dataset.colorinterp[band - 1] != ColorInterp.alpha]
                if found is None:
                    names = tuple(dataset.descriptions[band - 1] for band in bands)
                    found = CodeCounts(
                        path, len(bands), dataset.dtypes[bands[0] - 1], names, dataset.nodata, _table(dataset)
                    )
                if len(bands) != found.bands:
                    raise LabelError(
                        f"{path} has {len(bands)} label bands, {found.path} {found.bands}; give files of one kind"
                    )
                for window in read_grid(dataset).tiles(COUNT_WINDOW_PX):
                    _count(found, read_window(dataset, bands, window))
            advance(1)
    assert found is not None
    return found


def _table(dataset: Any) -> Mapping[int, MapClass]:
    """Return the names and colours that a raster has for its codes; none if it has several bands."""
    try:
        return Legend.from_dataset(dataset).value_table
    except DataError:
        return {}


def _count(found: CodeCounts, values: NDArray[Any]) -> None:
    """Add the values of a window (bands, H, W)."""
    if values.dtype.kind == "f":
        known = values[np.isfinite(values)]
        if (fractional := known != np.rint(known)).any():
            raise LabelError(
                f"{found.path}: has values such as {known[fractional][0]:g}, and class codes are whole numbers; if it "
                "holds the fraction of each class, write labels.fractions: true into a recipe (docs/labels.md)"
            )
        values = known
    codes = values.astype(np.int64)
    if found.in_color:
        codes = (codes << np.array([16, 8, 0])[:, None, None]).sum(axis=0)
    found.counts.update(dict(zip(*(part.tolist() for part in np.unique(codes, return_counts=True)), strict=True)))
    if len(found.counts) > MAX_CLASSES:
        what = "colours" if found.in_color else "values"
        raise LabelError(
            f"{found.path}: has more than {MAX_CLASSES} {what}, too many for classes; give the label raster (images "
            "come first, labels second), without smoothing or lossy compression"
        )


def draft_codes(found: CodeCounts) -> LabelDraft:
    """Return the task that fits the values of label rasters.

    Raises
    ------
    LabelError
        They cannot be the labels of a task: a single value, or several bands of values other than 0 and 1.
    """
    if found.bands == 1:
        return _draft_single_band(found)
    in_color = found.in_color and any(code & ~_MASK_BITS for code in found.counts)
    return _draft_colors(found) if in_color else _draft_masks(found)


def _draft_single_band(found: CodeCounts) -> LabelDraft:
    notes: list[str] = []
    counts = dict(sorted(found.counts.items()))
    named = {code: one.name for code, one in found.table.items() if one.name != str(code)}
    declared = int(found.nodata) if found.nodata is not None and float(found.nodata).is_integer() else None
    unlabelled = {
        code
        for code in counts
        if code < 0
        or code == declared
        or (code in named and is_unlabelled(named[code]))
        or (code in _UNLABELLED_CODES and code not in named)
    }
    classes = [code for code in counts if code not in unlabelled]
    labels: dict[str, Any] = {}
    background: int | None = None
    lone = next((code for code in (0, 255, declared) if code in unlabelled), None)
    if len(classes) == 1 and lone is not None:
        unlabelled.remove(lone)
        background = lone
        if classes == [0] and 0 not in named:  # masks of 0 and 255
            background, classes = 0, [lone]
        notes.append(f"code {background} is background: besides it there is only code {classes[0]}")
        if lone == declared:
            labels["nodata"] = "code"
    elif 0 in classes and not (0 in named and not is_background(named[0])):
        share = counts[0] / sum(counts[code] for code in classes)
        classes.remove(0)
        if len(classes) > 1 and share > _SPARSE_SHARE:
            unlabelled.add(0)
            notes.append(
                f"code 0 means unlabelled, since {format_percent(share)} of the pixels have it; if it means none of "
                "the classes, remove it from data.ignore, and task.background"
            )
        else:
            background = 0
            notes.append("code 0 is background, none of the classes; if it means unlabelled, list it in data.ignore")
    if not classes or (len(classes) == 1 and background is None):
        listed = ", ".join(map(str, counts))
        raise LabelError(f"{found.path}: its codes are {listed}, so there are no two classes to tell apart")
    if unlabelled:
        why = "declared as no data" if unlabelled == {declared} else "unlabelled"
        notes.append(f"code {', '.join(map(str, sorted(unlabelled)))} is not a class ({why})")
    # A mask of 0 and 255 becomes a map of 0 and 1.
    is_mask = 255 in (background, *classes) and len(classes) == 1
    values = [1] if is_mask else classes
    names = [
        _unique(named.get(code, f"class_{value}"), code, named) for code, value in zip(classes, values, strict=True)
    ]
    if missing := [name for code, name in zip(classes, names, strict=True) if code not in named]:
        notes.append(
            f"the files do not name their classes, so they are called {', '.join(missing[:3])}; "
            "rename them in task.classes"
        )
    colors = [found.table[code].color if code in found.table else None for code in classes]
    if is_mask:
        labels["values"] = {str(background): "background", str(classes[0]): names[0]}
    is_binary = len(classes) == 1
    task: dict[str, Any] = {"type": "binary" if is_binary else "multiclass"}
    if background is None:
        task["background"] = False
    task["classes"] = class_rows(names, values, colors)
    what = f"the labels have {len(classes)} classes" if not is_binary else "the labels have one class"
    what += " and background" if background is not None else "" if unlabelled else ", and every pixel has one"
    return LabelDraft(
        task, labels, what, tuple(notes),
        {name: f"{counts[code]:,} pixels" for name, code in zip(names, classes, strict=True)},
        tuple(sorted(code for code in unlabelled if code != declared)),
    )  # fmt: skip


def _unique(name: str, code: int, named: Mapping[int, str]) -> str:
    """Return a name that no other code has, and that is not that of background."""
    taken = is_background(name) or list(named.values()).count(name) > 1
    return f"{name}_{code}" if taken else name


def _draft_colors(found: CodeCounts) -> LabelDraft:
    colors = {format_color(code >> 16, code >> 8 & 255, code & 255): code for code in sorted(found.counts)}
    black = "#000000" if "#000000" in colors else None
    if len(colors) < 2:
        raise LabelError(f"{found.path}: its only colour is {next(iter(colors))}; labels need two classes or more")
    binary = len(colors) == 2 and black is not None
    classes = [color for color in colors if color != black]
    names = [_COLOR_NAMES.get(color, f"color_{color[1:]}") for color in classes]
    values: dict[str, str | None] = dict(zip(classes, names, strict=True))
    notes = ["the three bands are a colour for each class; rename the classes, which are called by their colours"]
    if black is not None:
        values[black] = "background" if binary else None
        notes.append(f"black is {'background' if binary else 'unlabelled'}")
    task: dict[str, Any] = {"type": "binary"} if binary else {"type": "multiclass", "background": False}
    task["classes"] = class_rows(names, range(1, len(names) + 1), classes)
    counts = {name: f"{found.counts[colors[color]]:,} pixels" for name, color in zip(names, classes, strict=True)}
    reason = f"the labels have {len(classes)} colour{'s' * (len(classes) > 1)} besides black"
    if black is None:
        reason = f"the labels have {len(classes)} colours"
    return LabelDraft(task, {"values": values}, reason, tuple(notes), counts)


def _draft_masks(found: CodeCounts) -> LabelDraft:
    """Return the task of rasters with one band of 0 and 1 per class."""
    levels = {*found.counts} if not found.in_color else {0, 1}
    unlabelled = levels - {0, 1}
    if found.nodata is not None:
        unlabelled -= {int(found.nodata)}
    if not levels & {1} or unlabelled - {255, 65535}:
        raise LabelError(
            f"{found.path}: has {found.bands} bands with the values {', '.join(map(str, sorted(levels)[:8]))}; label "
            "rasters have one band of codes, a band of 0 and 1 for each class, or red, green and blue. If the bands "
            "are fractions of classes, write labels.fractions: true into a recipe (docs/labels.md)"
        )
    names = [name or f"class_{number}" for number, name in enumerate(found.band_names, 1)]
    names = [f"{name}_{number}" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]
    task = {"type": "multilabel", "classes": class_rows(names, range(1, len(names) + 1))}
    return LabelDraft(
        task, {}, f"the labels have a band of 0 and 1 for each of {len(names)} classes, which may overlap",
        ignore=tuple(sorted(unlabelled)),
    )  # fmt: skip
