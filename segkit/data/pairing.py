"""Find the images and labels of a recipe, pair and open them."""

from __future__ import annotations

import csv
import glob
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from segkit.data.cache import Cache
from segkit.data.labels.base import Labels
from segkit.data.labels.open import open_labels
from segkit.errors import DataError
from segkit.io.files import require_file
from segkit.io.mosaic import RASTER_SUFFIXES, Mosaic, expand_paths
from segkit.io.paths import list_files
from segkit.io.remote import Remote, as_path, join_path
from segkit.io.scene import Scene
from segkit.io.vector import VECTOR_SUFFIXES, is_vector
from segkit.recipe.schema import Data, Recipe, SpatialSplit
from segkit.recipe.sources import DatasetSource, LabelSource, MosaicSource
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
    """

    scene: Scene
    labels: Labels | None
    weight: float = 1.0
    row: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class SceneFiles:
    """The files of a scene and of its labels, not yet opened; `weight` and `row` as in `Sample`."""

    name: str
    images: tuple[Path, ...]
    labels: tuple[LabelSource, ...] = ()
    weight: float = 1.0
    row: Mapping[str, str] = field(default_factory=dict, hash=False)

    def open(self, data: Data, task: Task, cache: Cache | None = None) -> Sample:
        """Open the scene and its labels; labels are None also if no label polygon intersects the scene.

        With a cache, both are decoded now unless they are cached.

        Raises
        ------
        SegkitError
            See `Scene.from_files` and `open_labels`.
        """
        scene = Scene.from_files(
            self.images,
            bands=data.bands,
            resample=data.resample,
            vrt=None,
            scaled=data.apply_scale_offset,
            name=self.name,
        )
        labels = open_labels(self.labels, task, scene.grid, ignore=data.ignore, resample=data.resample)
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
        return Sample(scene, labels, self.weight, self.row)


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


def open_samples(source: DatasetSource, data: Data, task: Task, cache: Cache | None = None) -> OpenedSamples:
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

    Raises
    ------
    MissingFileError
        A path does not exist.
    DataError
        Nothing can be paired, or what `Scene.from_files` and `open_labels` refuse.
    """
    pairing = pair_files(source)
    samples, unmatched = [], list(pairing.unmatched)
    for each in pairing.pairs:
        sample = each.open(data, task, cache)
        if each.labels and sample.labels is None:
            unmatched.append(each.images[0])
        else:
            samples.append(sample)
    if not samples:
        raise DataError(f"no polygon intersects a scene: {_list_some(unmatched)}; check the CRS of both")
    kinds = {sample.labels.soft: sample.labels.name for sample in samples if sample.labels is not None}
    if len(kinds) > 1:
        raise DataError(f"{kinds[True]} holds fractions, {kinds[False]} holds codes; use one kind for all")
    return OpenedSamples(tuple(samples), tuple(unmatched))


def source_files(source: DatasetSource) -> list[Path]:
    """Return all files of a source: its table, scenes and labels."""
    files = [as_path(path) for labels in source.label_sources for path in labels.paths]
    for one in pair_files(source).pairs:
        files += [*one.images, *(as_path(path) for labels in one.labels for path in labels.paths)]
    return files if source.table is None else [Path(source.table), *files]


def recipe_files(recipe: Recipe) -> list[Path]:
    """Return all files that a recipe reads: scenes, labels, polygons of a split, weights."""
    val = recipe.data.val
    files = source_files(recipe.data.train)
    if isinstance(val, DatasetSource):
        files += source_files(val)
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
    Vector files that are given by name, alone or in a list, serve every scene. Other labels are paired by stem with the
    first file of a scene; a single image and a single label file are paired whatever their names, and a single mosaic
    is paired with all files of the labels, which are one mosaic, too. With several label sources, a scene has those
    that are paired with it.

    Raises
    ------
    MissingFileError
        A path does not exist.
    DataError
        Two files have the same stem, or labels cannot be paired with any scene.
    """
    sources = [labels for labels in source.label_sources if labels.paths]
    table_labels = next((labels for labels in source.label_sources if not labels.paths), None)
    if source.table is not None:
        scenes = _read_table(Path(source.table), table_labels)
    else:
        scenes = _find_scenes(source.images or ())
    if not sources and not any(scene.labels for scene in scenes):
        return PairedFiles(tuple(scenes), ())
    pairs = [scene for scene in scenes if scene.labels]
    scenes = [scene for scene in scenes if not scene.labels]
    one_image = len(scenes) == 1 and (not isinstance(source.images, str) or _is_file(as_path(source.images)))
    found: list[list[LabelSource]] = [[] for _ in scenes]
    unmatched_labels: list[Path] = []
    for labels in sources:
        matches, unmatched = _match_labels(labels, scenes, one_image=one_image)
        if not any(matches) and not pairs:
            raise DataError(
                f"no image and label have the same file name: {_list_some([scenes[0].images[0], *unmatched])}; give an "
                "image and its label the same name except for the extension, or list them in a table"
            )
        unmatched_labels += unmatched
        for of_scene, match in zip(found, matches, strict=True):
            of_scene += [match] if match else []
    pairs += [replace(scene, labels=tuple(labels)) for scene, labels in zip(scenes, found, strict=True) if labels]
    unmatched_images = [scene.images[0] for scene, labels in zip(scenes, found, strict=True) if not labels]
    return PairedFiles(tuple(pairs), (*unmatched_images, *dict.fromkeys(unmatched_labels)))


def _match_labels(
    labels: LabelSource, scenes: Sequence[SceneFiles], *, one_image: bool
) -> tuple[list[LabelSource | None], list[Path]]:
    """Return the labels of each scene (None without), and the label files without a scene."""
    named = [as_path(path) for path in labels.paths]
    if all(is_vector(path) and not glob.has_magic(str(path)) for path in named):
        return [labels] * len(scenes), []
    files = [file for path in named for file in expand_paths(path, "labels", RASTER_SUFFIXES + VECTOR_SUFFIXES)]
    first = scenes[0].images[0]
    if one_image and isinstance(first, Mosaic):
        return [labels.with_files(_labels_of_mosaic(first, files))], []
    if one_image and files == named[:1]:
        return [labels.with_files(files)], []
    by_image = _by_name((scene.images[0].stem, scene) for scene in scenes)
    by_label = _by_name((file.stem, file) for file in files)
    matches = [labels.with_files([by_label[name]]) if name in by_label else None for name in by_image]
    return matches, [file for name, file in by_label.items() if name not in by_image]


def _labels_of_mosaic(mosaic: Mosaic, files: Sequence[Path]) -> Sequence[Path]:
    """Return the label files of a scene of several files: vector files, or rasters as one mosaic."""
    if all(is_vector(file) for file in files) or isinstance(files[0], Mosaic):
        return files
    if vector := next((file for file in files if is_vector(file)), None):
        raise DataError(f"{vector}: vector labels among rasters; list them as two sources")
    return [Mosaic(files, None if mosaic.overlap == "mean" else mosaic.overlap)]


def _find_scenes(images: str | MosaicSource | Sequence[Any]) -> list[SceneFiles]:
    scenes = []
    for item in [images] if isinstance(images, str | MosaicSource) else images:
        if isinstance(item, str | MosaicSource):
            scenes += [SceneFiles(file.stem, (file,)) for file in _expand_images(item)]
        else:
            stack = tuple(file for path in item for file in _expand_images(path))
            scenes.append(SceneFiles(stack[0].stem, stack))
    return scenes


def _expand_images(path: str | MosaicSource) -> list[Path]:
    return expand_paths(path.to_path() if isinstance(path, MosaicSource) else as_path(path), "images", RASTER_SUFFIXES)


def paths_as_text(paths: Any) -> Any:
    """Return paths as in a recipe: text, mosaics as keys, lists of these."""
    if isinstance(paths, Mosaic):
        return MosaicSource.from_path(paths)
    if isinstance(paths, (str, os.PathLike)):
        return os.fspath(paths)
    return paths if isinstance(paths, LabelSource | MosaicSource) else [paths_as_text(path) for path in paths]


def _read_table(path: Path, label_options: LabelSource | None) -> list[SceneFiles]:
    """Read a CSV with one row per scene and paths relative to its folder; `label_options` are those of its labels."""
    with require_file(path, "table").open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        header = reader.fieldnames or ()
        columns = [column for column in header if re.fullmatch(r"image_?[0-9]*", column)]
        if not columns:
            raise DataError(
                f"{path}: has the columns {', '.join(header) or 'none'}; it needs image (or image1, ...) and label"
            )
        if {"label", "mask"} <= {*header}:
            raise DataError(f"{path}: has the columns label and mask, which mean the same; rename one of them")
        if label_options is not None and not {"label", "mask"} & {*header}:
            raise DataError(f"{path}: has no column label, and the recipe's labels have no path; add one of them")
        others = [column for column in header if column not in {*columns, "label", "mask", "name", "weight"}]
        scenes = []
        for row in reader:
            place = f"{path}: line {reader.line_num}"
            images = tuple(join_path(path.parent, row[column]) for column in columns if row[column])
            if not images:
                raise DataError(f"{place}: no image; fill in the column image")
            label = row.get("label") or row.get("mask")
            labels = (
                (
                    (label_options or LabelSource()).model_copy(
                        update={"path": os.fspath(join_path(path.parent, label))}
                    ),
                )
                if label
                else ()
            )
            name = row.get("name") or images[0].stem
            other_values = {column: row[column] for column in others}
            weight = _parse_weight(row.get("weight") or "1", place)
            scenes.append(SceneFiles(name, images, labels, weight, other_values))
    if not scenes:
        raise DataError(f"{path}: has no rows; add one for each scene")
    return scenes


def _parse_weight(text: str, place: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (weight > 0 and math.isfinite(weight)):
        raise DataError(f"{place}: weight is {text!r}; it must be a positive number, or empty for 1")
    return weight


def _is_file(path: Path) -> bool:
    return isinstance(path, Remote) or path.is_file()


def _by_name(items: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, item in items:
        if name in found:
            raise DataError(
                f"two files have the name {name!r}, but labels are paired by name; rename one, or use a table"
            )
        found[name] = item
    return found


def _list_some(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(str(path) for path in paths[:3]) + more
