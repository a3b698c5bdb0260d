"""The files of a prediction: those of each scene, and the outputs that are named after it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from segkit.errors import UsageError, suggest
from segkit.inference.outputs import OutputRequest
from segkit.io.cog import MapPart
from segkit.io.file_search import IMAGE_SUFFIXES, expand_paths
from segkit.io.files import check_distinct, check_output, check_parent
from segkit.io.mosaic import Mosaic
from segkit.io.mosaic_layout import MosaicTile
from segkit.io.paths import PathLike
from segkit.io.remote import as_path
from segkit.io.stac_output import ITEM_SUFFIX, require_item_suffix

MAP = OutputRequest("map")


@dataclass(frozen=True)
class PredictionFiles:
    """The files of a scene and its outputs: rasters, and polygons.

    Parameters
    ----------
    files, rasters, vector
        The scene, its rasters, and its polygons.
    tiles
        The files of a mosaic into which each raster is cut, if it is; its path in `rasters` is then not written.
    stac
        The STAC item of the map.
    """

    files: tuple[Path, ...]
    rasters: dict[OutputRequest, Path]
    vector: Path | None
    tiles: tuple[MosaicTile, ...] = ()
    stac: Path | None = None

    @property
    def map(self) -> Path:
        """The map."""
        return self.rasters[MAP]

    @property
    def result(self) -> Path:
        """Where the map is: a file, or the folder of its parts."""
        return self.map.parent if self.tiles else self.map

    @property
    def outputs(self) -> list[Path]:
        """All outputs that are asked for."""
        rasters = [path for output in self.rasters for path in self.written(output)]
        return [*rasters, *(path for path in (self.vector, self.stac) if path is not None)]

    @property
    def beside_map(self) -> dict[str, Path]:
        """What is written with the map, by the name of the output; a raster that is cut into parts is their folder."""
        rasters = {one.name: path.parent if self.tiles else path for one, path in self.rasters.items() if one != MAP}
        others = {"polygons": self.vector, "STAC item": self.stac}
        return rasters | {name: path for name, path in others.items() if path is not None}

    def parts(self, output: OutputRequest) -> tuple[MapPart, ...]:
        """Return the files into which a raster output is cut, named after those of the scene; none for one file."""
        path = self.rasters[output]
        ending = path.name.removeprefix(self.files[0].stem)
        return tuple(
            MapPart(path.with_name(f"{tile.path.stem}{ending}"), tile.window, tile.grid) for tile in self.tiles
        )

    def written(self, output: OutputRequest) -> list[Path]:
        """Return the files of a raster output: one, or its parts."""
        return [part.path for part in self.parts(output)] or [self.rasters[output]]

    def whole(self, output: OutputRequest) -> Path:
        """Return a raster output as one path, from which the whole raster is read."""
        return Mosaic(self.written(output), overlap="first") if self.tiles else self.rasters[output]

    @property
    def side_files(self) -> list[Path]:
        """Other files that are written: the journal, and the style of polygons."""
        styles = [] if self.vector is None else [self.vector.with_suffix(".qml")]
        return [self.map.with_name(f"{self.map.name}.bands"), *styles]

    def absolute(self) -> PredictionFiles:
        """Return the same files with absolute paths, for other processes."""
        return PredictionFiles(
            tuple(file.absolute() for file in self.files),
            {name: path.absolute() for name, path in self.rasters.items()},
            None if self.vector is None else self.vector.absolute(),
            self.tiles,
            None if self.stac is None else self.stac.absolute(),
        )


def find_scenes(
    scenes: PathLike | Sequence[PathLike | Sequence[PathLike]], *, vrt: bool, dates: str | None = None
) -> list[tuple[Path, ...]]:
    """Return the files of each scene; each raster of a folder or glob is a scene, or with `dates` each place.

    Raises
    ------
    UsageError
        There are no scenes, or `dates` is not a pattern with a date, or scenes are stacks already.
    """
    entries = [scenes] if isinstance(scenes, (str, os.PathLike)) else scenes
    if dates is not None:
        return _find_dated(entries, dates)
    suffixes = (*IMAGE_SUFFIXES, ".vrt") if vrt else IMAGE_SUFFIXES
    found: list[tuple[Path, ...]] = []
    for entry in entries:
        if isinstance(entry, (str, os.PathLike)):
            found += [(file,) for file in expand_paths(as_path(entry), "scenes", suffixes)]
        else:
            found.append(tuple(file for path in entry for file in expand_paths(as_path(path), "scenes", suffixes)))
    if not found or not all(found):
        raise UsageError("no scenes, or a scene without files; name at least one raster")
    return found


def _find_dated(entries: Sequence[PathLike | Sequence[PathLike]], dates: str) -> list[tuple[Path, ...]]:
    """Return the files of each place, in the order of their dates."""
    from pydantic import ValidationError

    from segkit.data.pairing import find_dated_scenes
    from segkit.recipe.sources import Dates

    is_path = [isinstance(entry, (str, os.PathLike)) and not isinstance(entry, Mosaic) for entry in entries]
    if not all(is_path):
        raise UsageError(
            "dates finds the files of each scene, so they cannot be given as stacks or mosaics; leave one of both out"
        )
    paths = [os.fspath(cast("PathLike", entry)) for entry in entries]
    try:
        series = Dates(pattern=dates)
    except ValidationError as error:
        raise UsageError(f"dates: {error.errors(include_url=False)[0]['ctx']['error']}") from error
    return [scene.images for scene in find_dated_scenes(paths, series)[0]]


def plan_files(
    stacks: Sequence[tuple[Path, ...]],
    rasters: Mapping[str, PathLike | None],
    measures: tuple[str, ...],
    vector: PathLike | None,
    *,
    stac: PathLike | None = None,
    like_input: bool = False,
    vrt: bool = False,
) -> list[PredictionFiles]:
    """Return the files of each scene.

    Parameters
    ----------
    stacks
        Files of each scene.
    rasters
        Path or folder of each raster output that is asked for.
    measures
        Of uncertainty; their raster lies beside the map.
    vector
        Path or folder of the polygons.
    stac
        Path or folder of the STAC items.
    like_input
        Whether the rasters of a mosaic are cut like its files; their paths are folders then.
    vrt
        As for `open_raster`.

    Raises
    ------
    UsageError
        `like_input` is true, and a scene is not a mosaic.
    """

    def target(given: PathLike, stack: tuple[Path, ...], ending: str, *, folder: bool = False) -> Path:
        in_folder = folder or _is_folder(given, len(stacks))
        return Path(given) / f"{stack[0].stem}{ending}" if in_folder else Path(given)

    found = []
    for stack in stacks:
        files = {
            OutputRequest(name): target(path, stack, ".tif", folder=like_input)
            for name, path in rasters.items()
            if path is not None
        }
        if measures:
            map_path = files[MAP]
            beside = map_path.with_name(f"{map_path.stem}_uncertainty{map_path.suffix}")
            files[OutputRequest("uncertainty", measures)] = beside
        tiles = _tiles(stack[0], vrt=vrt) if like_input else ()
        polygons = None if vector is None else target(vector, stack, ".gpkg")
        item = None if stac is None else target(stac, stack, ITEM_SUFFIX)
        found.append(PredictionFiles(stack, files, polygons, tiles, item))
    return found


def _tiles(first: Path, *, vrt: bool) -> tuple[MosaicTile, ...]:
    """Return the files of a mosaic."""
    if not isinstance(first, Mosaic):
        raise UsageError(
            f"{first} is one file, so there is nothing to cut its map like"
            + suggest("leave out --like-input", "name files that lie side by side (--mosaic)")
        )
    return first.layout(vrt=vrt).tiles


def _is_folder(output: PathLike, scenes: int) -> bool:
    """Whether `output` is a folder, in which files are named after their scenes."""
    return scenes > 1 or _ends_as_folder(output) or Path(output).is_dir()


def _ends_as_folder(output: PathLike) -> bool:
    return os.fspath(output).endswith((os.sep, "/"))


def check_inputs_kept(
    jobs: Sequence[PredictionFiles], read: Sequence[PathLike], *, advice: str = "name another file"
) -> None:
    """Raise a UsageError if an output would overwrite a file that is read, or another output."""
    check_distinct([path for job in jobs for path in (*job.outputs, *job.side_files)], read, advice=advice)


def check_outputs(jobs: Sequence[PredictionFiles], given: Sequence[PathLike | None], read: Sequence[PathLike]) -> None:
    """Check before any work that all outputs can be written; create the folders for outputs of several files."""
    from segkit.vector.formats.writer import find_format

    check_inputs_kept(
        jobs,
        [*read, *(file for job in jobs for file in job.files)],
        advice="name another file"
        if len(jobs) == 1
        else "use different folders for maps and probabilities of several scenes, and separate calls for scenes with "
        "the same name",
    )
    for job in jobs:
        for raster in job.rasters.values():
            if raster.suffix.lower() not in (".tif", ".tiff"):
                raise UsageError(
                    f"{raster}: maps are GeoTIFFs; name a file that ends in .tif, or a folder that ends with /"
                )
        if job.vector is not None:
            find_format(job.vector)
        if job.stac is not None:
            require_item_suffix(job.stac)
    parents = {path.parent for job in jobs if job.tiles for path in job.rasters.values()}
    for output in (one for one in given if one is not None):
        if _is_folder(output, len(jobs)) or Path(output) in parents:
            tiles = sum(len(job.tiles) for job in jobs)
            _make_folder(output, *((tiles, "file") if tiles else (len(jobs), "scene")))
    for job in jobs:
        for path in job.outputs:
            check_output(path, overwrite=True)


def _make_folder(output: PathLike, number: int, what: str) -> None:
    folder = Path(output)
    if folder.is_file() or (folder.suffix and not folder.is_dir() and not _ends_as_folder(output)):
        raise UsageError(
            f"{folder} is a file, or named like one; the outputs of {number} {what}{'s' * (number > 1)} need a folder: "
            "name one that ends with /"
        )
    check_parent(folder)
    folder.mkdir(exist_ok=True)
