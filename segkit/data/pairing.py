"""Find the images and labels of a recipe, pair and open them."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from segkit.data.cache import Cache
from segkit.data.labels.base import Labels
from segkit.data.labels.features import read_label_features
from segkit.data.labels.open import has_features, open_labels
from segkit.data.matching import FileKey, file_key, pair_keys, stack_dates
from segkit.errors import DataError
from segkit.io.csv_table import CsvRow, read_csv
from segkit.io.file_search import IMAGE_SUFFIXES, LABEL_SUFFIXES, expand_paths
from segkit.io.mosaic import Mosaic
from segkit.io.name_pattern import NamePattern, normalize_name, suggest_patterns
from segkit.io.paths import list_files
from segkit.io.placement import describe_elsewhere, describe_extents
from segkit.io.product import as_image
from segkit.io.raster import open_raster, read_grid
from segkit.io.remote import Remote, as_path, join_path
from segkit.io.safe import is_safe
from segkit.io.scene import Scene
from segkit.recipe.imagery import open_scene
from segkit.recipe.label_source import LabelSource
from segkit.recipe.mosaic_source import MosaicSource
from segkit.recipe.schema import Data, Recipe
from segkit.recipe.sources import DatasetSource, Dates
from segkit.recipe.splits import SpatialSplit
from segkit.runtime.tables import list_some
from segkit.task import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """A scene and its labels on the grid of the scene.

    Parameters
    ----------
    scene, labels
        `labels` is None if there are none.
    weight
        Sampling weight of the scene; 1 by default.
    row
        The other columns of its row in the table; empty without a table.
    label_sources
        The files of the labels and how they are read.
    """

    scene: Scene
    labels: Labels | None
    weight: float = 1.0
    row: Mapping[str, str] = field(default_factory=dict, hash=False)
    label_sources: tuple[LabelSource, ...] = ()


@dataclass(frozen=True)
class SceneFiles:
    """The files of a scene and of its labels, not yet opened; `weight` and `row` as in `Sample`.

    Parameters
    ----------
    key
        By which labels are paired with the scene.
    shared
        Paths of label rasters that serve every scene that they cover.
    """

    name: str
    images: tuple[Path, ...]
    labels: tuple[LabelSource, ...] = ()
    weight: float = 1.0
    row: Mapping[str, str] = field(default_factory=dict, hash=False)
    key: FileKey = field(default=FileKey(""))
    shared: frozenset[str] = frozenset()

    def open(
        self, data: Data, task: Task, cache: Cache | None = None, *, trained: Sequence[str] | None = None
    ) -> Sample:
        """Open the scene and its labels; labels are None also if none of them intersects the scene.

        With a cache, both are decoded now unless they are cached. `trained` are the bands of a model, see `open_scene`.

        Raises
        ------
        SegkitError
            See `open_scene` and `open_labels`.
        """
        scene = open_scene(self.images, data, row=self.row, trained=trained, vrt=None, name=self.name)
        labels = open_labels(
            self.labels, task, scene.grid, ignore=data.ignore, resample=data.resample, shared=self.shared
        )
        if cache is not None:
            scene = cache.scene(scene)
        if cache is not None and labels is not None:
            paths = [as_path(path) for source in self.labels for path in source.paths]
            sources = [source.model_dump(mode="json", exclude={"path"}) for source in self.labels]
            how = {"sources": sources, "files": [len(source.paths) for source in self.labels]}
            if overlaps := [path.overlap for path in paths if isinstance(path, Mosaic)]:
                how["overlaps"] = overlaps
            how |= {"ignore": data.ignore, "resample": data.resample}
            labels = cache.labels(labels, [file for path in paths for file in list_files(path)], how)
        return Sample(scene, labels, self.weight, self.row, self.labels)


@dataclass(frozen=True)
class PairedFiles:
    """Scenes with their labels, and unmatched files (the first file of each scene)."""

    pairs: tuple[SceneFiles, ...]
    unmatched: tuple[Path, ...]


@dataclass(frozen=True)
class OpenedSamples:
    """Open samples, and unmatched files (the first file of each scene)."""

    samples: tuple[Sample, ...]
    unmatched: tuple[Path, ...]


def open_samples(
    source: DatasetSource,
    data: Data,
    task: Task,
    cache: Cache | None = None,
    *,
    trained: Sequence[str] | None = None,
) -> OpenedSamples:
    """Open all scenes of a source with their labels.

    Parameters
    ----------
    source
        Images and labels, or a table.
    data
        Bands to read, codes of unlabelled pixels, whether to resample.
    task
        The task of the labels.
    cache
        For decoded scenes and labels.
    trained
        Names of the bands of a model, see `open_scene`.

    Raises
    ------
    MissingFileError
        A path does not exist.
    DataError
        Nothing can be paired, or what `open_scene` and `open_labels` refuse.
    """
    pairing = pair_files(source)
    samples, unmatched = [], list(pairing.unmatched)
    for each in pairing.pairs:
        sample = each.open(data, task, cache, trained=trained)
        if each.labels and sample.labels is None:
            unmatched.append(each.images[0])
        else:
            samples.append(sample)
    if not samples:
        raise DataError(describe_unlabelled(pairing.pairs[0]))
    kinds = {sample.labels.soft: sample.labels.name for sample in samples if sample.labels is not None}
    if len(kinds) > 1:
        raise DataError(f"{kinds[True]} holds fractions, {kinds[False]} holds codes; use one kind for all")
    return OpenedSamples(tuple(samples), tuple(unmatched))


def describe_unlabelled(files: SceneFiles) -> str:
    """Return the message about scenes that no label covers, with the extents of the first one and of its labels."""
    with open_raster(files.images[0]) as dataset:
        grid = read_grid(dataset)
    labels = files.labels[0]
    path = as_path(labels.paths[0])
    found = f"no label covers a scene: {files.images[0]}"
    if has_features(path):
        return f"{found}; {describe_elsewhere(read_label_features(path, labels), grid)}"
    with open_raster(path) as dataset:
        return (
            f"{found}; {describe_extents(path, read_grid(dataset), grid)}; check the CRS of both, or give other files"
        )


def source_files(source: DatasetSource, data: Data) -> list[Path]:
    """Return all files of a source: its table, scenes, their quality masks, and labels."""
    mask = data.quality_mask
    files = [as_path(path) for labels in source.label_sources for path in labels.paths]
    for one in pair_files(source).pairs:
        files += [*one.images, *(as_path(path) for labels in one.labels for path in labels.paths)]
        files += [] if mask is None else mask.paths(one.images)
    return files if source.table is None else [Path(source.table), *files]


def recipe_files(recipe: Recipe) -> list[Path]:
    """Return all files that a recipe reads: scenes, quality masks, labels, polygons of a split, weights."""
    val = recipe.data.val
    files = [*source_files(recipe.data.train, recipe.data), *(layer.path for layer in recipe.data.covering_layers)]
    if isinstance(val, DatasetSource):
        files += source_files(val, recipe.data)
    elif isinstance(val, SpatialSplit) and val.polygons is not None:
        files.append(as_path(val.polygons))
    if recipe.model.encoder_weights is not None:  # a file, or the name of published weights
        files.append(as_path(recipe.model.encoder_weights))
    if recipe.model.start_from is not None:
        files.append(as_path(recipe.model.start_from))
    return files


def pair_files(source: DatasetSource) -> PairedFiles:
    """Find the scenes of a source and the labels of each.

    Labels in a table are paired with the images of their row, and are read as the label source without a path says.
    Vector files and tables of points that are given by name, alone or in a list, serve every scene. Other labels are
    paired by name with the first file of a scene, or with its place if it has several dates (`pair_keys`); a single
    image and a single label file are paired whatever their names, and a single mosaic is paired with all files of the
    labels, which are one mosaic, too. Rasters that are given by name, none of which has the name of a scene, serve
    every scene that they cover. With several label sources, a scene has those that are paired with it.

    Raises
    ------
    MissingFileError
        A path does not exist.
    DataError
        Two files have the same name, or labels cannot be paired with any scene.
    """
    sources = [labels for labels in source.label_sources if labels.paths]
    table_labels = next((labels for labels in source.label_sources if not labels.paths), None)
    left_out: list[Path] = []
    if source.table is not None:
        scenes = _read_table(Path(source.table), table_labels)
    elif source.date_series is not None:
        scenes, left_out = find_dated_scenes(source.images or (), source.date_series)
    else:
        scenes = _find_scenes(source.images or (), source.pair)
    if not sources and not any(scene.labels for scene in scenes):
        return PairedFiles(tuple(scenes), tuple(left_out))
    pairs = [scene for scene in scenes if scene.labels]
    scenes = [scene for scene in scenes if not scene.labels]
    one_image = len(scenes) == 1 and (not isinstance(source.images, str) or _is_file(as_path(source.images)))
    unmatched_labels: list[Path] = []
    for labels in sources:
        matched, unmatched = _match_labels(labels, scenes, one_image=one_image)
        if (
            not any(len(scene.labels) > len(before.labels) for scene, before in zip(matched, scenes, strict=True))
            and not pairs
        ):
            raise DataError(_describe_unpaired(scenes, unmatched))
        scenes = matched
        unmatched_labels += unmatched
    pairs += [scene for scene in scenes if scene.labels]
    unmatched_images = [scene.images[0] for scene in scenes if not scene.labels]
    return PairedFiles(tuple(pairs), (*unmatched_images, *left_out, *dict.fromkeys(unmatched_labels)))


def _match_labels(
    labels: LabelSource, scenes: Sequence[SceneFiles], *, one_image: bool
) -> tuple[list[SceneFiles], list[Path]]:
    """Return the scenes with the labels that are theirs added, and the label files without a scene."""

    def added(scene: SceneFiles, paths: Sequence[Path], *, shared: bool = False) -> SceneFiles:
        found = [labels.with_files([path]) for path in paths]
        names = [os.fspath(path) for path in paths] if shared else []
        return replace(scene, labels=(*scene.labels, *found), shared=scene.shared.union(names))

    named = [as_path(path) for path in labels.paths]
    if all(has_features(path) and not glob.has_magic(str(path)) for path in named):
        return [replace(scene, labels=(*scene.labels, labels)) for scene in scenes], []
    pattern = None if labels.pair is None else NamePattern(labels.pair)
    files = [(file, path) for path in named for file in expand_paths(path, "labels", LABEL_SUFFIXES, pattern)]
    if one_image and isinstance(mosaic := scenes[0].images[0], Mosaic):
        whole = labels.with_files(_labels_of_mosaic(mosaic, [file for file, _ in files]))
        return [replace(scenes[0], labels=(*scenes[0].labels, whole))], []
    if one_image and [file for file, _ in files] == named[:1]:
        return [added(scenes[0], named[:1])], []
    keys = [file_key(file, path, pattern) for file, path in files]
    by_image, by_label = pair_keys([scene.key for scene in scenes], keys)
    partner = {key: file for key, (file, _) in zip(by_label, files, strict=True)}
    if [file for file, _ in files] == named and not {*by_image} & {*by_label} and not any(map(has_features, named)):
        return [added(scene, named, shared=True) for scene in scenes], []
    matched = [
        added(scene, [partner[key]] if key in partner else []) for key, scene in zip(by_image, scenes, strict=True)
    ]
    return matched, [file for key, file in partner.items() if key not in by_image]


def _labels_of_mosaic(mosaic: Mosaic, files: Sequence[Path]) -> Sequence[Path]:
    """Return the label files of a scene of several files: vector files, or rasters as one mosaic."""
    if all(has_features(file) for file in files) or isinstance(files[0], Mosaic):
        return files
    if vector := next((file for file in files if has_features(file)), None):
        raise DataError(f"{vector}: vector labels among rasters; list them as two sources")
    return [Mosaic(files, None if mosaic.overlap == "mean" else mosaic.overlap)]


def _describe_unpaired(scenes: Sequence[SceneFiles], labels: Sequence[Path]) -> str:
    """Return the message about images and labels with different names."""
    images = [scene.images[0] for scene in scenes]
    advice = (
        "give an image and its label the same name except for the extension, describe how their names differ (pair), "
        "or list them in a table"
    )
    if (patterns := suggest_patterns(images, labels)) is not None:
        ours, theirs = patterns
        advice = f'if {{}} stands for the same part in both, set pair: "{ours}" for the images'
        advice += f' and labels.pair: "{theirs}"' if theirs != "{}" else ""
    return f"no image and label have the same file name: {list_some([images[0], *labels])}; {advice}"


def _find_scenes(images: str | MosaicSource | Sequence[Any], pair: str | None) -> list[SceneFiles]:
    pattern = None if pair is None else NamePattern(pair)
    scenes = []
    for item in _as_list(images):
        is_stack = not isinstance(item, str | MosaicSource)
        paths = [_source_path(path) for path in (item if is_stack else [item])]
        found = [(file, path) for path in paths for file in expand_paths(path, "images", IMAGE_SUFFIXES, pattern)]
        for stack in [found] if is_stack else [[one] for one in found]:
            key = file_key(*stack[0], pattern)
            scenes.append(SceneFiles(stack[0][0].stem, tuple(file for file, _ in stack), key=key))
    return _with_distinct_names(scenes)


def _source_path(path: str | MosaicSource) -> Path:
    return path.to_path() if isinstance(path, MosaicSource) else as_path(path)


def find_dated_scenes(images: Any, series: Dates) -> tuple[list[SceneFiles], list[Path]]:
    """Return a scene for each place, and the first file of each place that is left out.

    Raises
    ------
    MissingFileError
        A path does not exist, or no name matches the pattern.
    DataError
        Places have other numbers of dates than `series` says.
    """
    pattern = NamePattern(series.pattern)
    found: dict[FileKey, list[tuple[datetime, Path]]] = {}
    for item in _as_list(images):
        assert isinstance(item, str)
        for file in expand_paths(as_path(item), "images", IMAGE_SUFFIXES, pattern):
            parts = pattern.match(file)
            if parts is None or parts.date is None:
                raise DataError(f"{file}: its name does not match {series.pattern!r} (dates); correct the pattern")
            key = file_key(file, as_path(item), pattern)
            key = FileKey(key.name, "" if "/" in series.pattern else key.folder)
            found.setdefault(key, []).append((parts.date, file))
    stacks = stack_dates({key: sorted(files) for key, files in found.items()}, series)
    scenes = [SceneFiles(key.name, files, key=key) for key, files in stacks.items()]
    return _with_distinct_names(scenes), [min(files)[1] for key, files in found.items() if key not in stacks]


def _with_distinct_names(scenes: list[SceneFiles]) -> list[SceneFiles]:
    """Return scenes whose names tell them apart, as far as their folders do."""
    names = Counter(scene.name for scene in scenes)
    return [
        replace(scene, name=f"{scene.key.folder}/{scene.name}") if names[scene.name] > 1 and scene.key.folder else scene
        for scene in scenes
    ]


def paths_as_text(paths: Any) -> Any:
    """Return paths as in a recipe: text, mosaics as keys, lists of these."""
    if isinstance(paths, Mosaic):
        return MosaicSource.from_path(paths)
    if isinstance(paths, (str, os.PathLike)):
        return os.fspath(paths)
    return paths if isinstance(paths, LabelSource | MosaicSource) else [paths_as_text(path) for path in paths]


def _read_table(path: Path, label_options: LabelSource | None) -> list[SceneFiles]:
    """Read a CSV with one row per scene and paths relative to its folder; `label_options` are those of its labels."""
    table = read_csv(path, "table")
    columns = [column for column in table.columns if re.fullmatch(r"image_?[0-9]*", column)]
    has_labels = bool({"label", "mask"} & {*table.columns})
    if not columns:
        listed = ", ".join(table.columns) or "none"
        raise DataError(f"{path}: has the columns {listed}; it needs image (or image1, ...) and label")
    if {"label", "mask"} <= {*table.columns}:
        raise DataError(f"{path}: has the columns label and mask, which mean the same; rename one of them")
    if label_options is not None and not has_labels:
        raise DataError(f"{path}: has no column label, and the recipe's labels have no path; add one of them")
    others = [column for column in table.columns if column not in {*columns, "label", "mask", "name", "weight"}]
    scenes = []
    for row in table.rows:
        images = tuple(as_image(join_path(path.parent, row.cells[column])) for column in columns if row.cells[column])
        if not images:
            raise DataError(f"{row.place}: no image; fill in the column image")
        labels: tuple[LabelSource, ...] = ()
        if label := row.cells.get("label") or row.cells.get("mask"):
            source = label_options or LabelSource()
            labels = (source.model_copy(update={"path": os.fspath(join_path(path.parent, label))}),)
        name = row.cells.get("name") or images[0].stem
        other_values = {column: row.cells[column] for column in others}
        key = FileKey(normalize_name(images[0].stem))
        scenes.append(SceneFiles(name, images, labels, _parse_weight(row), other_values, key))
    if not scenes:
        raise DataError(f"{path}: has no rows; add one for each scene")
    return scenes


def _parse_weight(row: CsvRow) -> float:
    if not row.cells.get("weight"):
        return 1.0
    rule = "it must be a positive number, or empty for 1"
    weight = row.number("weight", rule)
    if weight <= 0:
        raise DataError(f"{row.place}: weight is {row.cells['weight']!r}; {rule}")
    return weight


def _is_file(path: Path) -> bool:
    return isinstance(path, Remote) or path.is_file() or is_safe(path)


def _as_list(items: str | MosaicSource | Sequence[T]) -> Sequence[Any]:
    return [items] if isinstance(items, str | MosaicSource) else items
