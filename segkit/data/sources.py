"""Sources: the paths of a recipe as scenes with their labels."""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from segkit.data.cache import Cache
from segkit.errors import DataError, MissingFileError
from segkit.files import existing
from segkit.labels import VECTOR_SUFFIXES, Labels, is_vector, open_labels
from segkit.raster import Scene
from segkit.recipe import Data, LabelSource, Source
from segkit.task import Task

T = TypeVar("T")

RASTER_SUFFIXES = (".tif", ".tiff", ".gtif", ".gtiff", ".jp2", ".img", ".png", ".dat", ".bsq", ".bil", ".bip")


@dataclass(frozen=True)
class Sample:
    """A scene and its labels, which lie on its grid; None where none were asked for."""

    scene: Scene
    labels: Labels | None


@dataclass(frozen=True)
class Pair:
    """The files of a scene and where its labels are; nothing is opened yet."""

    name: str
    images: tuple[Path, ...]
    labels: LabelSource | None

    def open(self, data: Data, task: Task, cache: Cache | None = None) -> Sample:
        """Open the scene and its labels; labels are None, too, where no polygon meets the scene.

        With a cache, both are decoded now, unless they were before.

        Raises
        ------
        SegkitError
            See `Scene.of` and `open_labels`.
        """
        scene = Scene.of(self.images, bands=data.bands, resample=data.resample, name=self.name)
        labels = None
        if self.labels is not None:
            labels = open_labels(self.labels, task, scene.grid, ignore=data.ignore, resample=data.resample)
        if cache is not None:
            scene = cache.scene(scene)
        if cache is not None and labels is not None and self.labels is not None:
            how = self.labels.model_dump(mode="json", exclude={"path"})
            how |= {"ignore": data.ignore, "resample": data.resample}
            labels = cache.labels(labels, [Path(path) for path in _listed(self.labels.path)], how)
        return Sample(scene, labels)


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
        if each.labels is not None and sample.labels is None:
            unmatched.append(each.images[0])
        else:
            samples.append(sample)
    if not samples:
        raise DataError(f"no polygon meets a scene: {_some(unmatched)}; check the CRS of both, or name other labels")
    return Resolved(tuple(samples), tuple(unmatched))


def pair(source: Source) -> Pairing:
    """Find the scenes of a source and the labels of each.

    Labels named in a table belong to their row. Vector files that are named, alone or in a list, serve every scene.
    Other labels pair by stem with the scene's first file; one file of each belong together whatever they are called.

    Raises
    ------
    MissingFileError
        A path that leads nowhere.
    DataError
        Two files of the same stem, or nothing that pairs.
    """
    scenes = _table(Path(source.table)) if source.table is not None else _scenes(source.images or ())
    labels = source.label_source
    if labels is None and all(scene.labels is None for scene in scenes):
        return Pairing(tuple(scenes), ())
    pairs = [scene for scene in scenes if scene.labels is not None]
    scenes = [scene for scene in scenes if scene.labels is None]
    if labels is None:
        return Pairing(tuple(pairs), tuple(scene.images[0] for scene in scenes))
    named = [Path(path) for path in _listed(labels.path)]
    if all(is_vector(path) and not glob.has_magic(str(path)) for path in named):
        return Pairing((*pairs, *(replace(scene, labels=labels) for scene in scenes)), ())

    files = [file for path in named for file in expand(path, "labels", RASTER_SUFFIXES + VECTOR_SUFFIXES)]
    one_image = len(scenes) == 1 and (not isinstance(source.images, str) or Path(source.images).is_file())
    if one_image and files == named[:1]:
        by_image, by_label = {"": scenes[0]}, {"": files[0]}
    else:
        by_image = _by_name((scene.images[0].stem, scene) for scene in scenes)
        by_label = _by_name((file.stem, file) for file in files)
    both = [name for name in by_image if name in by_label]
    pairs += [replace(by_image[name], labels=labels.model_copy(update={"path": str(by_label[name])})) for name in both]
    unmatched = [by_image[name].images[0] for name in by_image if name not in both]
    unmatched += [by_label[name] for name in by_label if name not in both]
    if not pairs:
        raise DataError(
            f"no image has a label of its name: {_some(unmatched)}; give an image and its label the same name up to "
            "the extension, or name them together in a table"
        )
    return Pairing(tuple(pairs), tuple(unmatched))


def _scenes(images: str | Sequence[str | Sequence[str]]) -> list[Pair]:
    scenes = []
    for item in _listed(images):
        if isinstance(item, str):
            scenes += [Pair(file.stem, (file,), None) for file in expand(Path(item), "images", RASTER_SUFFIXES)]
        else:
            stack = tuple(file for path in item for file in expand(Path(path), "images", RASTER_SUFFIXES))
            scenes.append(Pair(stack[0].stem, stack, None))
    return scenes


def _table(path: Path) -> list[Pair]:
    """Read a CSV with one row a scene; paths start at its folder."""
    with existing(path, "table").open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = [column for column in reader.fieldnames or () if column.startswith("image")]
        if not columns:
            raise DataError(
                f"{path}: its columns are {', '.join(reader.fieldnames or ()) or 'none'}; it needs image (or image1, "
                "image2, ...) and label"
            )
        scenes = []
        for row in reader:
            images = tuple(path.parent / row[column] for column in columns if row[column])
            if not images:
                raise DataError(f"{path}: line {reader.line_num} names no image")
            label = LabelSource(path=str(path.parent / row["label"])) if row.get("label") else None
            scenes.append(Pair(row.get("name") or images[0].stem, images, label))
    if not scenes:
        raise DataError(f"{path}: holds no rows; give one for each scene")
    return scenes


def expand(path: Path, what: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files that a path means: those in a folder, those a glob finds, or itself.

    Raises
    ------
    MissingFileError
        The path leads nowhere, or none of its files has one of the suffixes; `what` they are for is named.
    """
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
