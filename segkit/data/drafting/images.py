"""Find the images of a recipe: scenes, dates, bands in separate files, mosaics."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rasterio.enums import ColorInterp

from segkit.data.drafting.names import band_stacks, find_date, find_named_pairs
from segkit.data.pairing import pair_files
from segkit.errors import DataError, SegkitError
from segkit.io.cover import lie_side_by_side
from segkit.io.file_search import IMAGE_SUFFIXES, LABEL_SUFFIXES, expand_paths
from segkit.io.grid import Grid
from segkit.io.mosaic import Mosaic
from segkit.io.name_pattern import NamePattern, suggest_patterns
from segkit.io.raster import open_raster, read_grid
from segkit.io.remote import as_path
from segkit.io.vector import is_vector
from segkit.recipe.sources import DatasetSource
from segkit.runtime.tables import list_some


@dataclass(frozen=True)
class RasterFacts:
    """What the header of a raster says."""

    path: Path
    grid: Grid
    count: int
    dtype: str
    nodata: float | None
    alpha: bool

    @classmethod
    def read(cls, path: Path) -> RasterFacts:
        """Read the header of a file or mosaic."""
        with open_raster(path) as dataset:
            alpha = ColorInterp.alpha in dataset.colorinterp
            return cls(path, read_grid(dataset), dataset.count, dataset.dtypes[0], dataset.nodatavals[0], alpha)


@dataclass(frozen=True)
class DataSource:
    """Images and labels as keys of a recipe.

    Parameters
    ----------
    images
        Keys of `data.train` without labels.
    labels
        Keys of the labels; empty without labels.
    facts
        Of each image file that is used.
    notes
        What was assumed, for the user.
    """

    images: dict[str, Any]
    labels: dict[str, Any] = field(default_factory=dict)
    facts: tuple[RasterFacts, ...] = ()
    notes: tuple[str, ...] = ()

    def keys(self) -> dict[str, Any]:
        """Return the keys of `data.train`."""
        return self.images | ({"labels": self.labels} if self.labels else {})

    def with_note(self, note: str, **images: Any) -> DataSource:
        """Return the same source with other keys of the images, and a note."""
        return replace(self, images=self.images | images, notes=(*self.notes, note))


def find_source(images: str, labels: str | None) -> DataSource:
    """Return how images and labels are written in a recipe.

    Parameters
    ----------
    images, labels
        A file, folder, glob or URL each. Both may be the same folder; its names then tell which files are labels.

    Raises
    ------
    MissingFileError
        A path does not exist, or has no files of this kind.
    DataError
        Images and labels cannot be paired.
    """
    files = expand_paths(as_path(images), "images", IMAGE_SUFFIXES)
    if (pairs := _pairs_in_one_folder(images, labels)) is not None:
        return pairs
    source = DataSource({"images": images}, {"path": labels} if labels is not None else {})
    label_files = [] if labels is None else expand_paths(as_path(labels), "labels", LABEL_SUFFIXES)
    source = _leave_out(source, files, label_files)
    if len(source.facts) < 2:
        return source
    if label_files and _pair_by_name(source, label_files):
        return _pair_by_name(source, label_files) or source
    for combine in (_stack_bands, _stack_dates, _join_mosaic):
        if (combined := combine(source)) is not None:
            return combined
    return source


def _pairs_in_one_folder(images: str, labels: str | None) -> DataSource | None:
    """Return the source if images and labels lie in one folder, and their names tell them apart."""
    folder = as_path(images)
    if labels not in (None, images) or not folder.is_dir():
        return None
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in {*IMAGE_SUFFIXES, *LABEL_SUFFIXES})
    if labels is not None and (vectors := [file for file in files if is_vector(file)]):
        # A single file is of all images, several are named like theirs.
        return find_source(images, os.fspath(vectors[0] if len(vectors) == 1 else folder / f"*{vectors[0].suffix}"))
    if (found := find_named_pairs(files)) is None:
        if labels is None:
            return None
        raise DataError(
            f"{folder}: holds images and labels, but their names do not tell which is which; call them 7_image and "
            "7_label, or give two folders or globs"
        )
    of_labels = NamePattern(found.labels)
    given: dict[str, Any] = {"images": images, "pair": found.images}
    used = expand_paths(folder, "images", IMAGE_SUFFIXES, NamePattern(found.images))
    if found.images == "{}":  # no pattern leaves the labels out, so the images are listed
        used = [file for file in used if of_labels.match(file) is None]
        given = {"images": [os.fspath(file) for file in used]}
    note = f"the folder holds images ({found.images}) and labels ({found.labels}), by their names"
    return DataSource(
        given, {"path": images, "pair": found.labels}, tuple(map(RasterFacts.read, used)), (note,)
    )  # fmt: skip


def _leave_out(source: DataSource, files: Sequence[Path], label_files: Sequence[Path]) -> DataSource:
    """Return the source without files that cannot be images: the labels, and rasters unlike the others."""
    labels = {os.path.realpath(file) for file in label_files}
    # A raster with the name of the only vector file is usually made from it.
    twins = {os.path.realpath(file.with_suffix("")) for file in label_files if len(label_files) == 1}
    kept = [file for file in files if os.path.realpath(file) not in labels]
    kept = [file for file in kept if os.path.realpath(file.with_suffix("")) not in twins] or kept
    if not kept:
        raise DataError(f"{files[0]}: is given as image and as label; give the images first, then the labels")
    facts = [RasterFacts.read(file) for file in kept]
    bands = Counter(each.count for each in facts).most_common(2)
    if len(bands) > 1 and bands[0][1] > bands[1][1]:
        facts = [each for each in facts if each.count == bands[0][0]]
    used = {each.path for each in facts}
    source = replace(source, facts=tuple(facts))
    if left := [file.name for file in files if file not in used]:
        note = f"not used as images: {list_some(left)} (labels, or another number of bands)"
        return source.with_note(note, images=[os.fspath(each.path) for each in facts])
    return source


def _pair_by_name(source: DataSource, label_files: Sequence[Path]) -> DataSource | None:
    """Return the source with patterns for the names if it needs them; None if names do not pair."""
    images = [each.path for each in source.facts]
    if not {image.stem for image in images}.isdisjoint(label.stem for label in label_files):
        return source
    if len(label_files) == 1 or (patterns := suggest_patterns(images, label_files)) is None:
        return None
    ours, theirs = patterns
    labels = source.labels | ({"pair": theirs} if theirs != "{}" else {})
    paired = replace(source, labels=labels).with_note(
        f"images ({ours}) and labels ({theirs}) are paired by the part {{}} of their names", pair=ours
    )
    try:
        return paired if pair_files(DatasetSource.model_validate(paired.keys())).pairs else None
    except SegkitError:
        return None


def _stack_bands(source: DataSource) -> DataSource | None:
    """Return the source with a list of files for each scene if each file has one band, and its name says which."""
    if any(each.count > 1 for each in source.facts):
        return None
    files = [each.path for each in source.facts]
    stacks = band_stacks(files)
    if not _same_grids(source, stacks):
        return None
    used = {file for stack in stacks for file in stack}
    left = [file.name for file in files if file not in used]
    if len(used) < 2 or len(left) > len(used):
        return None
    note = f"each file holds one band; {len(stacks[0])} files are stacked to one scene, in the order of their bands"
    note += f"; not used: {list_some(left)}" if left else ""
    source = replace(source, facts=tuple(each for each in source.facts if each.path in used))
    return source.with_note(note, images=[[os.fspath(file) for file in stack] for stack in stacks])


def _stack_dates(source: DataSource) -> DataSource | None:
    """Return the source with several dates of one place stacked, if names have dates and grids are equal."""
    places: dict[str, list[Path]] = defaultdict(list)
    patterns = set()
    for each in source.facts:
        if (found := find_date(each.path.stem)) is not None:
            places[found.place].append(each.path)
            patterns.add(found.pattern)
    if len(patterns) != 1 or max(map(len, places.values())) < 2 or not _same_grids(source, [*places.values()]):
        return None
    numbers = {len(files) for files in places.values()}
    dates: dict[str, Any] = {"pattern": patterns.pop()}
    note = f"names have dates; {max(numbers)} dates of one place are stacked to one scene"
    if len(numbers) > 1:
        dates |= {"number": max(numbers), "missing": "skip"}
        note += ", and places with fewer are left out"
    given = source.images["images"]
    folder = given if isinstance(given, str) else None
    if folder is None:  # the pattern finds the files itself
        used = {file for files in places.values() for file in files}
        given = [os.fspath(each.path) for each in source.facts if each.path in used]
    return source.with_note(f"{note}; remove data.train.dates to use each date as a scene", images=given, dates=dates)


def _join_mosaic(source: DataSource) -> DataSource | None:
    """Return the source with all files as one mosaic, if they lie side by side."""
    if not lie_side_by_side([each.grid for each in source.facts]):
        return None
    given = source.images["images"]
    try:
        with open_raster(Mosaic(given)):
            pass
    except SegkitError:
        return None
    note = f"{len(source.facts)} images adjoin, so they are one scene (a mosaic)"
    return source.with_note(note, images={"mosaic": given})


def _same_grids(source: DataSource, stacks: Sequence[Sequence[Path]]) -> bool:
    grids = {each.path: each.grid for each in source.facts}
    return all(grids[stack[0]].describe_difference(grids[file]) is None for stack in stacks for file in stack)
