"""Labels: rasters of codes, masks or fractions, and polygons, read as a task's target planes on a scene's grid.

Every label pixel is a class, background, or not known (`IGNORE`). What each source says is written as *claims*: of each
class whether it is there (or how much of it), or nothing. So several sources are joined before the `Task`, which knows
what planes it has and which classes exclude each other, turns claims into planes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NodataShadowWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import DataError, GridError, LabelError, ways
from segkit.io.grid import Grid
from segkit.io.polygons import Polygons, on_grid, rasterised, read_polygons
from segkit.io.raster import grid_of, open_raster, read_window, warped
from segkit.io.remote import located
from segkit.io.vector import VECTOR_SUFFIXES, is_vector
from segkit.recipe.schema import LabelSource
from segkit.task.task import BACKGROUND, IGNORE, SLACK, Task

_COUNTED_AT_ONCE = 2048  # pixels along a side
_NOT_KNOWN = int(np.iinfo(np.int64).min)  # beside every code that a label raster can hold
_MOST_SLACK = 0.05  # of sums of fractions, however coarsely a file's numbers are rounded
_ROUNDING = 1e-6  # of a fraction in float32


@dataclass(frozen=True, eq=False)
class Labels(ABC):
    """Labels of one scene, read window by window; holds no open file, so it can go to another process.

    Parameters
    ----------
    name
        The files, as errors name them.
    grid
        The scene's grid, which is the labels' too.
    task
        Whose target planes are read.
    notes
        What was met on opening and dealt with: geometries repaired or skipped, a missing georeference.
    soft
        Whether planes are soft: shares of the channels' categories, instead of categories.
    doubts
        What may be wrong until somebody says which way it is meant: files that declare the value of a class, or of
        background, as no data. Until then it counts as not known.
    """

    name: str
    grid: Grid
    task: Task
    notes: tuple[str, ...]
    soft: bool
    doubts: tuple[str, ...] = field(default=(), kw_only=True)

    def read(self, window: Window) -> NDArray[Any]:
        """Read the target planes of a window; `IGNORE` where not known, and outside the scene.

        Returns
        -------
        int16 (P, H, W), or float32 (C, H, W) where labels are soft; see `segkit.task.task`

        Raises
        ------
        LabelError
            A code the task does not know, a number that is no code or no fraction, an overlap of classes that exclude
            each other, or sources that contradict each other.
        RasterError
            The file is damaged there.
        """
        row, column, height, width = (int(i) for i in (window.row_off, window.col_off, window.height, window.width))
        if row >= 0 and column >= 0 and row + height <= self.grid.height and column + width <= self.grid.width:
            return self._read(window)
        planes, dtype = (self.task.channels, np.float32) if self.soft else (self.task.planes, np.int16)
        target = np.full((planes, height, width), IGNORE, dtype=dtype)
        top, bottom = max(0, row), min(self.grid.height, row + height)
        left, right = max(0, column), min(self.grid.width, column + width)
        if top < bottom and left < right:
            inside = Window(left, top, right - left, bottom - top)
            target[:, top - row : bottom - row, left - column : right - column] = self._read(inside)
        return target

    @abstractmethod
    def _read(self, window: Window) -> NDArray[Any]:
        """Read a window that lies inside the scene."""


def open_labels(
    source: LabelSource | Sequence[LabelSource],
    task: Task,
    grid: Grid,
    *,
    ignore: Sequence[int] = (),
    resample: bool = False,
) -> Labels | None:
    """Open the labels of a scene.

    Where there are several sources, each class is known where one that speaks for it knows it. Classes that exclude
    each other deny each other: where one is there, no other is, and background is where all are denied.

    Parameters
    ----------
    source
        One or several; the `path` of each is one raster file, or one or more vector files.
    task
        Whose codes, names and planes they have.
    grid
        The scene's.
    ignore
        Codes that mean "not known".
    resample
        Whether a raster on another grid is brought to `grid` by nearest neighbour.

    Returns
    -------
    The labels, or None where no polygon meets the scene, and there are no others.

    Raises
    ------
    MissingFileError
        A file is not there.
    GridError
        The labels lie on another grid, or in no known place on it.
    LabelError
        A layer, field, value or geometry that cannot be used, or instructions that contradict each other.
    """
    sources = [source] if isinstance(source, LabelSource) else source
    if len({one.fractions for one in sources}) > 1:
        some, others = (next(one for one in sources if one.fractions is soft) for soft in (True, False))
        raise LabelError(
            f"{_paths(some)[0]} holds fractions, {_paths(others)[0]} does not; the labels of a scene are all "
            "fractions, or none of them is"
        )
    opened = [_open(one, task, grid, ignore, resample) for one in sources]
    parts = tuple(part for part in opened if part is not None)
    if len(parts) < 2:
        return parts[0] if parts else None
    names, notes = " and ".join(part.name for part in parts), tuple(note for part in parts for note in part.notes)
    doubts = tuple(doubt for part in parts for doubt in part.doubts)
    return _JoinedLabels(names, grid, task, notes, parts[0].soft, parts, doubts=doubts)


def _paths(source: LabelSource) -> list[Path]:
    return [located(path) for path in source.paths]


def _open(source: LabelSource, task: Task, grid: Grid, ignore: Sequence[int], resample: bool) -> _ClaimingLabels | None:
    paths = _paths(source)
    classes = _spoken(source, task, paths[0])
    if all(is_vector(path) for path in paths):
        if source.fractions:
            raise LabelError(f"{paths[0]}: fractions is for rasters of one band per class; remove it")
        if source.nodata is not None:
            raise LabelError(f"{paths[0]}: nodata is for label rasters; remove it")
        return _open_vector(paths, source, task, grid, ignore, classes)
    if len(paths) > 1:
        raise LabelError(f"{paths[0]} and {paths[1]}: a scene has one label raster, or vector files; name one file")
    for key in ("layer", "field", "priority", "outside"):
        if getattr(source, key) is not None and not (key == "outside" and source.fractions):
            raise LabelError(f"{paths[0]}: {key} is for vector labels ({', '.join(VECTOR_SUFFIXES)}); remove it")
    file, notes = _label_file(paths[0], grid, len(classes), resample=resample)
    return (_open_fractions if source.fractions else _open_codes)(file, source, task, ignore, classes, notes)


def _spoken(source: LabelSource, task: Task, path: Path) -> tuple[str, ...]:
    """Return the classes that a source speaks for, in its order; refuse names that the task does not have."""
    names = [one.name for one in task.classes]
    classes = tuple(names) if source.classes is None else source.classes
    own = names + [BACKGROUND] * bool(source.fractions and task.background)
    for key, found, known in (
        ("classes", classes, own),
        ("priority", source.priority or (), [*classes, BACKGROUND]),
        (
            "values",
            [name for name in (source.values or {}).values() if name],
            [*classes] + [BACKGROUND] * task.has_none,
        ),
    ):
        for name in found:
            if name not in known:
                raise LabelError(
                    f"{path}: labels.{key} names {name!r}, these labels speak for {', '.join(known)}; correct it"
                )
    if len(set(classes)) < len(classes):
        raise LabelError(f"{path}: labels.classes names a class twice ({', '.join(classes)}); name each once")
    return classes


@dataclass(frozen=True, eq=False)
class _ClaimingLabels(Labels):
    """Labels as their files hold them."""

    def _read(self, window: Window) -> NDArray[Any]:
        return self.task.encode_masks(self._claims(window), ignore=[IGNORE], source=self.name)

    @abstractmethod
    def _claims(self, window: Window) -> NDArray[Any]:
        """Say of each class what is known of it in a window inside the scene.

        int16 (k, H, W): 1 it is there, 0 it is not, `IGNORE` these labels do not say. Or, of fractions, float64
        (k + 1, H, W): its share and at last that of background, NaN where they do not say.
        """


@dataclass(frozen=True)
class _LabelFile:
    """One band of codes, or one band per class: what the file's mask or no-data value hides, and NaN, is not known.

    `nodata` is the declared value where that decides what is hidden; `coded` says that it hides nothing.
    """

    path: Path
    grid: Grid
    bands: tuple[int, ...]
    masked: bool
    resample: bool
    nodata: float | None
    coded: bool = False

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read numbers (bands, H, W) as the file has them, and where they are hidden."""
        with contextlib.ExitStack() as stack:
            dataset: DatasetReader = stack.enter_context(open_raster(self.path))
            if self.resample:
                dataset = stack.enter_context(warped(dataset, self.grid, Resampling.nearest, ignore_nodata=self.coded))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NodataShadowWarning)  # no-data counts, no alpha band
                found = read_window(dataset, self.bands, window, masked=self.masked)
        values, hidden = np.ma.getdata(found), np.ma.getmaskarray(found)
        if self.coded and not self.resample:
            hidden &= values != self.nodata
        return values, hidden | np.isnan(values) if values.dtype.kind == "f" else hidden

    def understood(self, as_code: str | None, source: LabelSource) -> tuple[_LabelFile, tuple[str, ...]]:
        """Say what the declared no-data value means, which reads `as_code` if it is a code; and what is in doubt."""
        if as_code is None or source.nodata == "ignore":
            return self, ()
        if source.nodata == "code":
            return replace(self, coded=True), ()
        with open_raster(self.path) as dataset:
            windows = grid_of(dataset).tiles(_COUNTED_AT_ONCE)
            pixels = sum(
                int((read_window(dataset, self.bands, window) == self.nodata).any(axis=0).sum()) for window in windows
            )
            share = pixels / (dataset.height * dataset.width)
        if not pixels:
            return self, ()
        return self, (f"{self.path} declares {self.nodata:g} as no data, which is also {as_code} ({share:.1%} of it)",)


@dataclass(frozen=True, eq=False)
class _CodeLabels(_ClaimingLabels):
    """Codes by the classes' values or by a table of their own; or a mask of 0 and 1 for each of `classes`."""

    file: _LabelFile
    ignore: tuple[int, ...]
    classes: tuple[str, ...]
    values: dict[int, str | None] | None

    def _read(self, window: Window) -> NDArray[Any]:
        if len(self.file.bands) > 1 or len(self.classes) < len(self.task.classes):
            return super()._read(window)
        return self._coded(self.task.encode, window)

    def _claims(self, window: Window) -> NDArray[np.int16]:
        if len(self.file.bands) > 1:
            ignore = (*self.ignore, _NOT_KNOWN)
            own = self.classes if len(self.classes) < len(self.task.classes) else None
            return self.task.claims_of_masks(self._codes(window), ignore=ignore, classes=own, source=self.name)
        return self._coded(functools.partial(self.task.claims, classes=self.classes), window)

    def _coded(self, encode: Callable[..., NDArray[np.int16]], window: Window) -> NDArray[np.int16]:
        encode = functools.partial(encode, ignore=(*self.ignore, _NOT_KNOWN), values=self.values, source=self.name)
        try:
            return encode(self._codes(window)[0])
        except LabelError:
            # The same is said again of the whole file, so that the codes and their pixels are all.
            counts: Counter[int] = Counter()
            for part in self.grid.tiles(_COUNTED_AT_ONCE):
                some, times = np.unique(self._codes(part), return_counts=True)
                counts.update(dict(zip(some.tolist(), times.tolist(), strict=True)))
            found, pixels = np.array([*counts.items()], dtype=np.int64).T
            return encode(found[None], pixels=pixels[None])

    def _codes(self, window: Window) -> NDArray[np.int64]:
        values, hidden = self.file.read(window)
        if values.dtype.kind == "f":
            odd = ~hidden & ~(np.isfinite(values) & (values == np.rint(values)))
            if odd.any():
                raise LabelError(
                    f"{self.name}: holds {values[odd][0]:g} and such ({int(odd.sum())} pixels); label codes are whole "
                    "numbers: is this a map of fractions (labels.fractions: true), or resampled with averages?"
                )
        return np.where(hidden, _NOT_KNOWN, np.where(hidden, 0, values).astype(np.int64))


@dataclass(frozen=True, eq=False)
class _FractionLabels(_ClaimingLabels):
    """A band of cover for each of `classes`: stored numbers * scale + offset, of each band its own.

    `rest` and `slack` are those of `Task.encode_fractions`.
    """

    file: _LabelFile
    ignore: tuple[int, ...]
    classes: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    rest: Literal["background", "ignore"] | None
    slack: float

    def _read(self, window: Window) -> NDArray[Any]:
        claims = self._claims(window)
        return self.task.encode_fractions(claims, rest=self.rest, slack=self.slack, source=self.name)

    def _claims(self, window: Window) -> NDArray[np.float64]:
        shares = self._shares(window)
        for place, band in enumerate(self.file.bands):
            if _no_fraction(shares[place]).any():
                self._refuse(place, band)
        names = [*(one.name for one in self.task.classes), BACKGROUND]
        claims = np.full((len(names), *shares.shape[1:]), np.nan)
        claims[[names.index(name) for name in self.classes]] = shares.clip(0, 1)
        return claims

    def _shares(self, window: Window) -> NDArray[np.float64]:
        values, hidden = self.file.read(window)
        scale, offset = (np.array(each)[:, None, None] for each in (self.scales, self.offsets))
        shares: NDArray[np.float64] = values.astype(np.float64) * scale + offset
        shares[hidden | np.isin(values, self.ignore)] = np.nan
        return shares

    def _refuse(self, place: int, band: int) -> None:
        """Say of the whole file what numbers of a band are no fractions."""
        whole = (self._shares(part)[place] for part in self.grid.tiles(_COUNTED_AT_ONCE))
        numbers = np.concatenate([shares[_no_fraction(shares)] for shares in whole])
        far = numbers[np.abs(numbers - 0.5).argmax()]
        raise LabelError(
            f"{self.name}: band {band} ({self.classes[place]}) holds fractions as {far:.6g} ({numbers.size} pixels); "
            "they lie between 0 and 1: labels.whole says what a pixel covered wholly has, data.ignore what number "
            "means that nothing is known"
        )


def _no_fraction(shares: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say what is neither NaN nor between 0 and 1."""
    return (shares < -_ROUNDING) | (shares > 1 + _ROUNDING)


def _label_file(path: Path, grid: Grid, classes: int, *, resample: bool) -> tuple[_LabelFile, list[str]]:
    """Look at a raster of labels for so many classes: which bands are labels, and how they come to the grid."""
    notes = []
    with open_raster(path) as dataset:
        own, flags = grid_of(dataset), dataset.mask_flag_enums
        alpha = {band for band in dataset.indexes if dataset.colorinterp[band - 1] == ColorInterp.alpha}
        # GDAL calls the fourth of four byte bands alpha, also where it is the fourth class.
        per_class = dataset.count == classes
        bands = tuple(band for band in dataset.indexes if per_class or band not in alpha)
        nodata = dataset.nodata if any(MaskFlags.nodata in flags[band - 1] for band in bands) else None
    alpha_is_class = bool(alpha.intersection(bands)) and any(MaskFlags.alpha in flags[band - 1] for band in bands)
    difference = grid.difference(own)
    if difference and own.crs is None and not own.located and own.shape == grid.shape:
        notes.append(f"{path} has no georeference; its pixels are taken as those of the image, which has its size")
        difference = None
    if difference and (own.crs is None or grid.crs is None or alpha_is_class):
        why = "its alpha band would hide its other classes" if alpha_is_class else "one of them has no CRS"
        raise GridError(
            f"{path} lies on another grid than its image ({difference}, image first), and cannot be resampled to it: "
            f"{why}; correct the labels"
        )
    if difference and not resample:
        raise GridError(
            f"{path} lies on another grid than its image ({difference}, image first)"
            + ways("correct the labels", "set data.resample: true")
        )
    return _LabelFile(path, grid, bands, not alpha_is_class, bool(difference), nodata), notes


def _open_codes(
    file: _LabelFile,
    source: LabelSource,
    task: Task,
    ignore: Sequence[int],
    classes: tuple[str, ...],
    notes: list[str],
) -> _CodeLabels:
    path, values = file.path, _table(file.path, source, file.bands)
    codes: Mapping[int, str | None] = {0: "where a class is not", 1: "where a class is"}
    if len(file.bands) == 1:
        named = {row["value"]: row["name"] for row in task.legend} if values is None else values
        codes = {code: f"the code of {name}" for code, name in named.items() if name}
    meant = next((codes[code] for code in codes if code == file.nodata and code not in ignore), None)
    file, doubts = file.understood(meant, source)
    return _CodeLabels(
        str(path), file.grid, task, tuple(notes), False, file, tuple(ignore), classes, values, doubts=doubts
    )


def _open_fractions(
    file: _LabelFile,
    source: LabelSource,
    task: Task,
    ignore: Sequence[int],
    classes: tuple[str, ...],
    notes: list[str],
) -> _FractionLabels:
    path, bands = file.path, file.bands
    if source.values is not None:
        raise LabelError(f"{path}: values is for codes, not for fractions; remove it")
    if source.outside is not None and task.planes > 1:
        raise LabelError(f"{path}: outside is for classes that exclude each other; remove it")
    if len(bands) != len(classes):
        raise LabelError(
            f"{path}: {len(bands)} bands of fractions, these labels speak for {len(classes)} classes "
            f"({', '.join(classes)}); name the class of each band, in their order, under labels.classes"
        )
    with open_raster(path) as dataset:
        dtypes = [dataset.dtypes[band - 1] for band in bands]
        scales = tuple(dataset.scales[band - 1] / source.whole for band in bands)
        offsets = tuple(dataset.offsets[band - 1] / source.whole for band in bands)
    for scale, offset in dict.fromkeys(zip(scales, offsets, strict=True)):
        for code in ignore:
            if not _no_fraction(np.array(share := code * scale + offset)):
                raise LabelError(
                    f"{path}: data.ignore lists {code}, which is the fraction {share:g} here; remove it, and say under "
                    "labels.values of the labels that hold codes that it is not known"
                )
    meant = None
    if file.nodata is not None and file.nodata not in ignore:
        shares = (file.nodata * scale + offset for scale, offset in zip(scales, offsets, strict=True))
        meant = next((f"the fraction {share:g}" for share in shares if 0 <= share <= 1), None)
    file, doubts = file.understood(meant, source)
    # Sums of whole numbers miss 1 by their rounding.
    steps = sum(abs(scale) for scale, dtype in zip(scales, dtypes, strict=True) if "int" in dtype)
    slack = min(max(SLACK, steps / 2), _MOST_SLACK)
    return _FractionLabels(
        str(path), file.grid, task, tuple(notes), True, file, tuple(ignore), classes, scales, offsets,
        source.outside, slack, doubts=doubts,
    )  # fmt: skip


def _table(path: Path, source: LabelSource, bands: Sequence[int]) -> dict[int, str | None] | None:
    """Return a source's table of codes."""
    if source.whole != 1:
        raise LabelError(f"{path}: whole is for fractions (labels.fractions: true); remove it")
    if source.values is None:
        return None
    if len(bands) > 1:
        raise LabelError(f"{path}: values is for one band of codes, this has {len(bands)} bands; remove it")
    for code in source.values:
        if not re.fullmatch("0|-?[1-9][0-9]*", code):
            raise LabelError(f"{path}: labels.values lists {code!r}; codes of a raster are whole numbers")
    return {int(code): name for code, name in source.values.items()}


@dataclass(frozen=True, eq=False)
class _JoinedLabels(_ClaimingLabels):
    """What several sources say of one scene."""

    parts: tuple[_ClaimingLabels, ...]

    def _read(self, window: Window) -> NDArray[Any]:
        if not self.soft:
            return super()._read(window)
        own = [part for part in self.parts if isinstance(part, _FractionLabels)]
        rests = {part.rest for part in own}
        rest = next((one for one in ("ignore", "background") if one in rests), None)
        return self.task.encode_fractions(
            self._claims(window), rest=rest, slack=max(part.slack for part in own), source=self.name
        )

    def _claims(self, window: Window) -> NDArray[Any]:
        joined, *others = (self._said(part, window) for part in self.parts)
        for claims in others:
            if _differ(joined, claims).any():
                self._refuse()
            joined = np.where(_unsaid(joined), claims, joined)
        return joined

    def _said(self, part: _ClaimingLabels, window: Window) -> NDArray[Any]:
        """Return a part's claims; of classes that exclude each other, one that is there denies the others."""
        claims = part._claims(window)
        if self.soft or self.task.planes > 1:
            return claims
        return np.where((claims == IGNORE) & (claims == 1).any(axis=0), np.int16(0), claims)

    def _refuse(self) -> None:
        """Say of the whole scene where sources contradict each other."""
        names = [*(one.name for one in self.task.classes), BACKGROUND]
        pixels: Counter[tuple[int, int]] = Counter()
        about: dict[tuple[int, int], set[int]] = {}
        for window in self.grid.tiles(_COUNTED_AT_ONCE):
            said = [self._said(part, window) for part in self.parts]
            for pair in itertools.combinations(range(len(said)), 2):
                differ = _differ(said[pair[0]], said[pair[1]])
                pixels[pair] += int(differ.any(axis=0).sum())
                about.setdefault(pair, set()).update(np.flatnonzero(differ.any(axis=(1, 2))).tolist())
        (one, other), count = pixels.most_common(1)[0]
        those = ", ".join(names[place] for place in sorted(about[one, other]))
        raise LabelError(
            f"{self.parts[one].name} and {self.parts[other].name} contradict each other on {count} pixels (about "
            f"{those}); correct one of them, or let only one speak for a class (labels.classes); polygons that say "
            "nothing of the rest have outside: ignore"
        )


def _unsaid(claims: NDArray[Any]) -> NDArray[np.bool_]:
    unsaid: NDArray[np.bool_] = np.isnan(claims) if claims.dtype.kind == "f" else claims == IGNORE
    return unsaid


def _differ(claims: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Say where both know, and not the same."""
    differ: NDArray[np.bool_] = np.abs(claims - others) > (SLACK if claims.dtype.kind == "f" else 0)
    return differ & ~_unsaid(claims) & ~_unsaid(others)


@dataclass(frozen=True, eq=False)
class _VectorLabels(_ClaimingLabels):
    """Polygons in pixel coordinates of the grid; a pixel is in a polygon that holds its centre.

    `kinds` says what each polygon is: a class's position, k for "none of the classes", k + 1 for "not known".
    """

    polygons: NDArray[Any]
    kinds: NDArray[np.intp]
    tree: shapely.STRtree
    priority: tuple[int, ...]
    outside_known: bool
    spoken: tuple[int, ...]

    def _claims(self, window: Window) -> NDArray[np.int16]:
        k = len(self.task.classes)
        top, left, shape = window.row_off, window.col_off, (window.height, window.width)
        covered = np.zeros((k + 2, *shape), dtype=bool)
        near = self.tree.query(shapely.box(left, top, left + window.width, top + window.height))
        for kind in np.unique(self.kinds[near]):
            covered[kind] = rasterised(self.polygons[near[self.kinds[near] == kind]], window)
        known = ~covered[k + 1] & (covered.any(axis=0) | self.outside_known)
        claims = covered[: k + 1]
        if self.task.planes == 1:
            self._settle(claims, known)
        spoken = np.isin(np.arange(k), self.spoken)[:, None, None]
        return np.where(known & spoken, claims[:k], IGNORE).astype(np.int16)

    def _settle(self, claims: NDArray[np.bool_], known: NDArray[np.bool_]) -> None:
        """Leave each pixel to one claim, in place."""
        taken = np.zeros_like(known)
        for kind in (*self.priority, *(kind for kind in range(len(claims)) if kind not in self.priority)):
            claims[kind] &= ~taken
            if kind in self.priority:
                taken |= claims[kind]
        disputed = known & (claims.sum(axis=0) > 1)
        if disputed.any():
            names = [one.name for one in self.task.classes] + [BACKGROUND]
            those = [name for name, claim in zip(names, claims, strict=True) if (claim & disputed).any()]
            raise LabelError(
                f"{self.name}: polygons of {' and '.join(those)} overlap on {int(disputed.sum())} pixels, classes of a "
                f"{self.task.type} task exclude each other; list the winners first under labels.priority, correct the "
                "polygons, or use type multilabel"
            )


def _open_vector(
    paths: Sequence[Path],
    source: LabelSource,
    task: Task,
    grid: Grid,
    ignore: Sequence[int],
    classes: tuple[str, ...],
) -> _VectorLabels | None:
    k = len(task.classes)
    kinds = {BACKGROUND: k} if task.has_none else {}
    kinds |= {one.name: position for position, one in enumerate(task.classes)}
    polygons, meanings, notes = [], [], []
    for path in paths:
        try:
            layer = read_polygons(path, source.layer, option="labels.layer")
            values = None if source.field is None else layer.texts(source.field)
        except DataError as error:
            raise LabelError(str(error)) from error
        meaning = _meanings(layer, values, source, task, kinds, ignore, classes)
        shapes, near, repaired = on_grid(layer, grid)
        polygons.append(shapes)
        meanings.append(meaning[near])
        if layer.skipped:
            notes.append(f"{path}: {layer.skipped} features have no geometry; skipped")
        if repaired:
            notes.append(f"{path}: {repaired} polygons on this scene were invalid; repaired")
    shapes, meaning = np.concatenate(polygons), np.concatenate(meanings)
    if not shapes.size:
        return None
    name = ", ".join(str(path) for path in paths)
    ranks = tuple(kinds[one] for one in source.priority or ())
    known = source.outside != "ignore"
    spoken = tuple(kinds[name] for name in classes)
    tree = shapely.STRtree(shapes)
    return _VectorLabels(name, grid, task, tuple(notes), False, shapes, meaning, tree, ranks, known, spoken)


def _meanings(
    layer: Polygons,
    values: tuple[str | None, ...] | None,
    source: LabelSource,
    task: Task,
    kinds: dict[str, int],
    ignore: Iterable[int],
    classes: Sequence[str],
) -> NDArray[np.intp]:
    """Say what each polygon of a layer is, as `_VectorLabels.kinds` does."""
    path, not_known = layer.path, len(task.classes) + 1
    if values is None:
        if len(classes) > 1:
            whose = "the task has" if source.classes is None else "these labels speak for"
            raise LabelError(
                f"{path}: {whose} {len(classes)} classes; name the field that tells them apart under "
                f"labels.field (there are {', '.join(map(str, layer.attributes)) or 'none'})"
            )
        return np.full(len(layer.shapes), kinds[classes[0]], dtype=np.intp)
    if source.values is not None:
        table = {value: not_known if name is None else kinds[name] for value, name in source.values.items()}
    else:
        own = {name: kind for name, kind in kinds.items() if name in (*classes, BACKGROUND)}
        table = {str(code): not_known for code in ignore}
        table |= {str(task.background_value): kinds[BACKGROUND]} if BACKGROUND in kinds else {}
        table |= {str(one.value): kinds[one.name] for one in task.classes if one.name in classes} | own
    unknown = [value for value in values if value not in table]
    if unknown:
        counts = ", ".join(f"{value!r} ({unknown.count(value)} polygons)" for value in list(dict.fromkeys(unknown))[:5])
        raise LabelError(
            f"{path}: field {source.field!r} holds {counts}, known are {', '.join(table)}; say under labels.values "
            "which class each is (null: not known)"
        )
    return np.array([table[value] for value in values if value is not None], dtype=np.intp)
