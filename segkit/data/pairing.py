"""Sources: the paths of a recipe as scenes with their labels."""

from __future__ import annotations

import csv
import glob
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from segkit.data.cache import Cache
from segkit.data.labels.base import Labels
from segkit.data.labels.open import open_labels
from segkit.errors import DataError, MissingFileError, UsageError
from segkit.io.files import existing
from segkit.io.remote import Remote, beside, located
from segkit.io.scene import Scene
from segkit.io.vector import VECTOR_SUFFIXES, is_vector
from segkit.recipe.schema import Data, LabelSource, Recipe, Source, Split
from segkit.task.task import Task

T = TypeVar("T")

RASTER_SUFFIXES = (".tif", ".tiff", ".gtif", ".gtiff", ".jp2", ".img", ".png", ".dat", ".bsq", ".bil", ".bip")


@dataclass(frozen=True)
class Sample:
    """A scene and its labels, which lie on its grid.

    Parameters
    ----------
    scene, labels
        Labels are None where none were asked for.
    weight
        How often the scene is drawn, beside others; 1 where the table does not say.
    row
        What the table says of it in columns that segkit gives no meaning; empty where there is no table.
    """

    scene: Scene
    labels: Labels | None
    weight: float = 1.0
    row: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Pair:
    """The files of a scene and where its labels are, `weight` and `row` as in `Sample`; nothing is opened yet."""

    name: str
    images: tuple[Path, ...]
    labels: tuple[LabelSource, ...] = ()
    weight: float = 1.0
    row: Mapping[str, str] = field(default_factory=dict, hash=False)

    def open(self, data: Data, task: Task, cache: Cache | None = None) -> Sample:
        """Open the scene and its labels; labels are None, too, where they are polygons and none meets the scene.

        With a cache, both are decoded now, unless they were before.

        Raises
        ------
        SegkitError
            See `Scene.of` and `open_labels`.
        """
        scene = Scene.of(self.images, bands=data.bands, resample=data.resample, scaled=data.scaled, name=self.name)
        labels = open_labels(self.labels, task, scene.grid, ignore=data.ignore, resample=data.resample)
        if cache is not None:
            scene = cache.scene(scene)
        if cache is not None and labels is not None:
            files = [[located(path) for path in source.paths] for source in self.labels]
            sources = [source.model_dump(mode="json", exclude={"path"}) for source in self.labels]
            how = {"sources": sources, "files": [len(each) for each in files]}
            how |= {"ignore": data.ignore, "resample": data.resample}
            labels = cache.labels(labels, [file for each in files for file in each], how)
        return Sample(scene, labels, self.weight, self.row)


@dataclass(frozen=True)
class Pairing:
    """What belongs together, and the files (of each scene the first) that have no partner."""

    pairs: tuple[Pair, ...]
    unmatched: tuple[Path, ...]


@dataclass(frozen=True)
class Resolved:
    """Open samples, and the files (of each scene the first) that have no partner."""

    samples: tuple[Sample, ...]
    unmatched: tuple[Path, ...]


def resolve(source: Source, data: Data, task: Task, cache: Cache | None = None) -> Resolved:
    """Open all scenes of a source with their labels.

    Parameters
    ----------
    source
        Where they are.
    data
        Which bands to read, which codes mean "not known", whether to resample.
    task
        What the labels mean.
    cache
        Where scenes and labels are kept decoded.

    Raises
    ------
    MissingFileError
        A path that leads nowhere.
    DataError
        Nothing pairs, or what `Scene.of` and `open_labels` refuse.
    """
    pairing = pair(source)
    samples, unmatched = [], list(pairing.unmatched)
    for each in pairing.pairs:
        sample = each.open(data, task, cache)
        if each.labels and sample.labels is None:
            unmatched.append(each.images[0])
        else:
            samples.append(sample)
    if not samples:
        raise DataError(f"no polygon meets a scene: {_some(unmatched)}; check the CRS of both, or name other labels")
    kinds = {sample.labels.soft: sample.labels.name for sample in samples if sample.labels is not None}
    if len(kinds) > 1:
        raise DataError(f"{kinds[True]} holds fractions, {kinds[False]} does not; give all scenes labels of one kind")
    return Resolved(tuple(samples), tuple(unmatched))


def source_files(source: Source) -> list[Path]:
    """Return the files that a source names or finds: its table, scenes and labels."""
    named = [located(path) for labels in source.label_sources for path in labels.paths]
    for one in pair(source).pairs:
        named += [*one.images, *(located(path) for labels in one.labels for path in labels.paths)]
    return named if source.table is None else [Path(source.table), *named]


def recipe_files(recipe: Recipe) -> list[Path]:
    """Return the files that a recipe reads: scenes, labels, polygons of a split, weights."""
    val = recipe.data.val
    files = source_files(recipe.data.train)
    if isinstance(val, Source):
        files += source_files(val)
    elif isinstance(val, Split) and val.polygons is not None:
        files.append(located(val.polygons))
    if recipe.model.encoder_weights is not None:  # a file, or a name that is none
        files.append(located(recipe.model.encoder_weights))
    return files


def pair(source: Source) -> Pairing:
    """Find the scenes of a source and the labels of each.

    Labels named in a table belong to their row, and are read as labels without a path say. Vector files that are named,
    alone or in a list, serve every scene. Other labels pair by stem with the scene's first file; one file of each
    belong together whatever they are called.
    Of several label sources a scene has those that pair with it.

    Raises
    ------
    MissingFileError
        A path that leads nowhere.
    DataError
        Two files of the same stem, or labels that pair with no scene.
    """
    sources = [labels for labels in source.label_sources if labels.paths]
    how = next((labels for labels in source.label_sources if not labels.paths), None)
    scenes = _table(Path(source.table), how) if source.table is not None else _scenes(source.images or ())
    if not sources and not any(scene.labels for scene in scenes):
        return Pairing(tuple(scenes), ())
    pairs = [scene for scene in scenes if scene.labels]
    scenes = [scene for scene in scenes if not scene.labels]
    one_image = len(scenes) == 1 and (not isinstance(source.images, str) or _is_file(located(source.images)))
    found: list[list[LabelSource]] = [[] for _ in scenes]
    left: list[Path] = []
    for labels in sources:
        partners, alone = _partners(labels, scenes, one_image=one_image)
        if not any(partners) and not pairs:
            raise DataError(
                f"no image has a label of its name: {_some([scenes[0].images[0], *alone])}; give an "
                "image and its label the same name up to the extension, or name them together in a table"
            )
        left += alone
        for own, partner in zip(found, partners, strict=True):
            own += [partner] if partner else []
    pairs += [replace(scene, labels=tuple(own)) for scene, own in zip(scenes, found, strict=True) if own]
    unmatched = [scene.images[0] for scene, own in zip(scenes, found, strict=True) if not own]
    return Pairing(tuple(pairs), (*unmatched, *dict.fromkeys(left)))


def _partners(
    labels: LabelSource, scenes: Sequence[Pair], *, one_image: bool
) -> tuple[list[LabelSource | None], list[Path]]:
    """Return the labels of each scene, and the files that belong to none."""
    named = [located(path) for path in labels.paths]
    if all(is_vector(path) and not glob.has_magic(str(path)) for path in named):
        return [labels] * len(scenes), []
    files = [file for path in named for file in expand(path, "labels", RASTER_SUFFIXES + VECTOR_SUFFIXES)]
    if one_image and files == named[:1]:
        return [labels.model_copy(update={"path": os.fspath(files[0])})], []
    by_image = _by_name((scene.images[0].stem, scene) for scene in scenes)
    by_label = _by_name((file.stem, file) for file in files)
    partners = [
        labels.model_copy(update={"path": os.fspath(by_label[name])}) if name in by_label else None for name in by_image
    ]
    return partners, [file for name, file in by_label.items() if name not in by_image]


def _scenes(images: str | Sequence[str | Sequence[str]]) -> list[Pair]:
    scenes = []
    for item in _listed(images):
        if isinstance(item, str):
            scenes += [Pair(file.stem, (file,)) for file in expand(located(item), "images", RASTER_SUFFIXES)]
        else:
            stack = tuple(file for path in item for file in expand(located(path), "images", RASTER_SUFFIXES))
            scenes.append(Pair(stack[0].stem, stack))
    return scenes


def _table(path: Path, how: LabelSource | None) -> list[Pair]:
    """Read a CSV with one row a scene; paths start at its folder. `how` says how the labels that it names are read."""
    with existing(path, "table").open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        header = reader.fieldnames or ()
        columns = [column for column in header if re.fullmatch(r"image_?[0-9]*", column)]
        if not columns:
            raise DataError(
                f"{path}: its columns are {', '.join(header) or 'none'}; it needs image (or image1, image2, ...) and "
                "label"
            )
        if {"label", "mask"} <= {*header}:
            raise DataError(f"{path}: has the columns label and mask, which mean the same; rename one of them")
        if how is not None and not {"label", "mask"} & {*header}:
            raise DataError(f"{path}: has no column label, and the recipe's labels have no path; give one of them")
        others = [column for column in header if column not in {*columns, "label", "mask", "name", "weight"}]
        scenes = []
        for row in reader:
            place = f"{path}: line {reader.line_num}"
            images = tuple(beside(path.parent, row[column]) for column in columns if row[column])
            if not images:
                raise DataError(f"{place} names no image")
            label = row.get("label") or row.get("mask")
            labels = (
                ((how or LabelSource()).model_copy(update={"path": os.fspath(beside(path.parent, label))}),)
                if label
                else ()
            )
            own = {column: row[column] for column in others}
            name = row.get("name") or images[0].stem
            scenes.append(Pair(name, images, labels, _weight(row.get("weight") or "1", place), own))
    if not scenes:
        raise DataError(f"{path}: holds no rows; give one for each scene")
    return scenes


def _weight(text: str, place: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (weight > 0 and math.isfinite(weight)):
        raise DataError(f"{place}: weight is {text!r}; it is a positive number, or empty for 1")
    return weight


def expand(path: Path, what: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files that a path means: those in a folder, those a glob finds, or itself.

    Raises
    ------
    UsageError
        It is a URL that names no single file.
    MissingFileError
        The path leads nowhere, or none of its files has one of the suffixes; `what` they are for is named.
    """
    if isinstance(path, Remote):
        if os.fspath(path).endswith("/") or "*" in str(path):
            raise UsageError(
                f"{path}: folders and globs are of this machine's files; name each remote file, in a list or in a "
                "table (CSV)"
            )
        return [path]
    if path.is_dir():
        found: Iterable[Path] = path.iterdir()
    elif not path.exists() and glob.has_magic(str(path)):
        found = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - a pattern of a whole path
    else:
        return [existing(path)]
    files = sorted(file for file in found if file.suffix.lower() in suffixes and not file.name.startswith("."))
    if not files:
        raise MissingFileError(f"{path}: holds no {what} ({', '.join(suffixes)})")
    return files


def _is_file(path: Path) -> bool:
    return isinstance(path, Remote) or path.is_file()


def _by_name(items: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, item in items:
        if name in found:
            raise DataError(f"two files are called {name!r}; labels pair by name: rename one, or use a table")
        found[name] = item
    return found


def _listed(items: str | Sequence[T]) -> Sequence[T | str]:
    return [items] if isinstance(items, str) else items


def _some(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(str(path) for path in paths[:3]) + more
