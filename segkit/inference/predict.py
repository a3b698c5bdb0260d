"""Predict: scenes to maps.

Here requests are checked. `scene_job` has the steps of a scene and `tasks` what they consist of; `executor` says where
these are done. `settings` chooses how, `tiling` lays out windows and gathers their rows into bands, `blending` turns a
band into finished blocks of probabilities, `bands` decides them into files, and the `journal` keeps these until the map
is whole.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.errors import OutputExistsError, RasterError, ScenesError, UsageError, ways
from segkit.inference.summary import Summary, peak_memory
from segkit.io.files import check_apart, check_output, check_parent, existing, remove_leftovers
from segkit.io.raster import PathLike, open_raster, version_now
from segkit.io.remote import Remote, located
from segkit.runtime.memory import return_memory

if TYPE_CHECKING:
    from segkit.inference.executor import Crew, Steps
    from segkit.inference.settings import Options
    from segkit.inference.tasks import Source
    from segkit.io.polygons import Polygons
    from segkit.models.segmenter import Segmenter

__all__ = ["Summary", "predict"]

_LISTED = 3  # scenes that a warning names


def predict(
    model: Segmenter | PathLike,
    scenes: PathLike | Sequence[PathLike | Sequence[PathLike]],
    output: PathLike,
    *,
    probabilities: PathLike | None = None,
    confidence: PathLike | None = None,
    vector: PathLike | None = None,
    aoi: PathLike | None = None,
    aoi_layer: str | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    batch: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    exact: bool = False,
    tta: str | None = None,
    vrt: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
    crew: Crew | None = None,
) -> list[Summary]:
    """Map whole scenes with a model.

    Each map lies on its scene's grid: every valid pixel is decided, every other one is no data. What is finished of a
    map is kept beside it in the folder OUTPUT.bands until all of it is; the same call goes on from there after an
    interruption. A map that the same call has finished before is left as it is. Where one scene of several fails, the
    others are still mapped.

    Parameters
    ----------
    model
        A model file, or a Segmenter.
    scenes
        A raster, a folder or a glob of rasters, each a scene, or a sequence of these; files whose bands make up one
        scene are a sequence of their own.
    output
        The map (.tif), or a folder, in which each map is named after its scene. Several scenes need a folder; it is
        made where it is missing. With one scene, a path is a folder if there is one, or if it ends with "/".
    probabilities
        Where to write a band of probabilities per channel of the model: a .tif or a folder, likewise.
    confidence
        Where to write the probability of what was decided, a band per band of the map: likewise.
    vector
        Where to write the map's polygons: a file whose ending names the format, or a folder of GeoPackages, likewise.
    aoi
        Polygons, in any CRS: pixels whose centre lies outside of them are no data, and hardly computed.
    aoi_layer
        The layer of `aoi` that holds them, where it has several.
    tile, overlap
        Pixels along a side of the windows that the network sees at most, and how many of them neighbours share at
        least. By default what keeps seams invisible, or, where the network pools over its whole window, the tiles
        that it was trained on.
    batch
        Windows of one forward pass; by default as many as keep the device busy.
    precision
        "fp32", "bf16", or "auto": bf16 where the device has it natively and it decides the scene's first windows as
        fp32 does.
    device
        "cpu", "cuda", "cuda:N", or "auto": CUDA where there is one.
    exact
        Whether each pixel is decided with all that it would see in one pass over the whole scene.
    tta
        "d4": probabilities are averaged over the eight symmetries of the square, in eight times the time.
    vrt
        Whether scenes may be virtual rasters, which can read any other file.
    overwrite
        Whether files that are there already are replaced, and unfinished work of another call is thrown away.
    crew
        Workers of a cluster (`segkit.inference.dask_executor.connect`), which see the same files under the same paths;
        by default this process does it all. The pixels are the same.

    Returns
    -------
    list of Summary, one per scene, in their order.

    Raises
    ------
    UsageError, OutputExistsError, MissingFileError
        Told before any work: an option, an output that cannot be written, two scenes of one name.
    SegkitError
        The scene could not be mapped.
    ScenesError
        Some of several could not.
    ClusterError
        The crew was lost, or some of a scene's work was set aside because it failed there; the same call goes on.
    """
    if aoi_layer is not None and aoi is None:
        raise UsageError("aoi_layer names a layer of aoi, which is not given; name the file of polygons, too")
    jobs = _jobs(_found(scenes, vrt=vrt), output, {"probabilities": probabilities, "confidence": confidence}, vector)
    _check_outputs(jobs, [output, probabilities, confidence, vector], [model, aoi])

    from segkit.inference.executor import ask, said, work_elsewhere, work_here
    from segkit.inference.settings import Options
    from segkit.inference.tasks import Check, Tools
    from segkit.io.region import read_area
    from segkit.models.segmenter import load

    network = load(model) if isinstance(model, (str, os.PathLike)) else model
    options = Options(tile, overlap, batch, device, precision, exact, tta)
    polygons = None if aoi is None else read_area(aoi, aoi_layer)
    if polygons is not None:
        polygons.warn()
    if crew is None:
        options.check(network)
    else:
        jobs, source = [job.absolute() for job in jobs], _source(network, aoi, aoi_layer, polygons)
        options = ask(crew, source, Check("", options))
    asked = _asked(network, options, polygons)
    requests = [asked | {"scene": _identity(job), "outputs": sorted(job.rasters)} for job in jobs]
    finished = [_finished(job, request, overwrite=overwrite) for job, request in zip(jobs, requests, strict=True)]
    if network.context is not None and not all(finished):
        warnings.warn(
            f"the network pools over its whole window: it is given windows of {network.context} pixels, as in "
            "training, and may decide otherwise where two windows meet",
            stacklevel=2,
        )
    steps = [
        _steps(job, network, options, request, summary, vrt=vrt, overwrite=overwrite, show_progress=show_progress)
        for job, request, summary in zip(jobs, requests, finished, strict=True)
    ]
    ended = (
        list(work_here(steps, Tools(network, polygons, show_progress=show_progress), show_progress=show_progress))
        if crew is None
        else work_elsewhere(steps, crew, source, show_progress=show_progress)
    )
    return_memory()
    summaries = [one for one in ended if isinstance(one, Summary)]
    empty = [
        str(job.files[0]) for job, one in zip(jobs, ended, strict=True) if isinstance(one, Summary) and not one.valid
    ]
    if empty:
        _warn_empty(empty, aoi)
    failures = {str(job.files[0]): one for job, one in zip(jobs, ended, strict=True) if isinstance(one, Exception)}
    if failures and len(jobs) == 1:
        raise next(iter(failures.values()))
    if failures:
        told = "".join(f"\n  {file}: {said(error)}" for file, error in failures.items())
        raise ScenesError(f"{len(failures)} of {len(jobs)} scenes failed, the others are done:{told}", summaries)
    return summaries


def _warn_empty(scenes: Sequence[str], aoi: PathLike | None) -> None:
    listed = ", ".join(scenes[:_LISTED]) + (f" and {len(scenes) - _LISTED} more" if len(scenes) > _LISTED else "")
    where = "" if aoi is None else f" inside {aoi}"
    warnings.warn(
        f"no pixel{where} holds data in {len(scenes)} scene{'s' * (len(scenes) > 1)}, so no pixel of the map is "
        f"decided: {listed}; check the no-data value and the mask of the files",
        stacklevel=3,
    )


@dataclass(frozen=True)
class _Job:
    """One scene's files and what is written for it: rasters by product, and polygons."""

    files: tuple[Path, ...]
    rasters: dict[str, Path]
    vector: Path | None

    @property
    def map(self) -> Path:
        return self.rasters["map"]

    @property
    def outputs(self) -> list[Path]:
        return [*self.rasters.values(), *([self.vector] if self.vector is not None else [])]

    @property
    def own(self) -> list[Path]:
        """What is written beside the outputs: the journal, and the style of polygons."""
        styles = [] if self.vector is None else [self.vector.with_suffix(".qml")]
        return [self.map.with_name(f"{self.map.name}.bands"), *styles]

    def absolute(self) -> _Job:
        """Name files so that other processes find them."""
        return _Job(
            tuple(file.absolute() for file in self.files),
            {name: path.absolute() for name, path in self.rasters.items()},
            None if self.vector is None else self.vector.absolute(),
        )


def _source(network: Segmenter, aoi: PathLike | None, layer: str | None, polygons: Polygons | None) -> Source:
    """Tell a crew where it finds the model and the area of interest."""
    from segkit.inference.tasks import Source
    from segkit.io.region import identity

    if network.path is None:
        raise UsageError(
            "the model is only in memory, where a cluster's workers cannot read it; save it, and name the file"
        )
    if polygons is None or aoi is None:
        return Source(network.path.absolute(), network.fingerprint())
    return Source(network.path.absolute(), network.fingerprint(), Path(aoi).absolute(), layer, identity(polygons))


def _steps(
    job: _Job,
    network: Segmenter,
    options: Options,
    request: dict[str, Any],
    summary: Summary | None,
    *,
    vrt: bool,
    overwrite: bool,
    show_progress: bool,
) -> Steps:
    """Take the steps of one scene, from its files to its polygons."""
    from segkit.inference.executor import settled
    from segkit.inference.journal import Journal
    from segkit.inference.scene_job import predict_scene
    from segkit.inference.tasks import Vectorize

    if summary is not None:
        # What a call has left that was killed after its last step but one.
        Journal.clear(job.map)
        for path in job.outputs:
            remove_leftovers(path.parent, path.name)
    else:
        summary = yield from predict_scene(
            network,
            job.files,
            job.rasters,
            options,
            request,
            vrt=vrt,
            overwrite=overwrite,
            show_progress=show_progress,
        )
    if job.vector is not None:
        polygons = [Vectorize(job.map.stem, job.map, job.vector, job.rasters.get("probabilities"), overwrite)]
        settled(polygons, (yield polygons))
    return summary


def _found(scenes: PathLike | Sequence[PathLike | Sequence[PathLike]], *, vrt: bool) -> list[tuple[Path, ...]]:
    """Return the files of each scene: of folders and globs every raster, each a scene."""
    from segkit.data.pairing import RASTER_SUFFIXES, expand

    suffixes = (*RASTER_SUFFIXES, ".vrt") if vrt else RASTER_SUFFIXES
    found: list[tuple[Path, ...]] = []
    for one in [scenes] if isinstance(scenes, (str, os.PathLike)) else scenes:
        if isinstance(one, (str, os.PathLike)):
            found += [(file,) for file in expand(located(one), "scenes", suffixes)]
        else:
            found.append(tuple(file for path in one for file in expand(located(path), "scenes", suffixes)))
    if not found or not all(found):
        raise UsageError("no scene was named, or one of no files; name at least one raster")
    return found


def _jobs(
    stacks: Sequence[tuple[Path, ...]], output: PathLike, others: dict[str, PathLike | None], vector: PathLike | None
) -> list[_Job]:
    def target(given: PathLike, stack: tuple[Path, ...], ending: str) -> Path:
        return Path(given) / f"{stack[0].stem}{ending}" if _is_folder(given, len(stacks)) else Path(given)

    rasters = {"map": output} | {name: path for name, path in others.items() if path is not None}
    return [
        _Job(
            stack,
            {name: target(path, stack, ".tif") for name, path in rasters.items()},
            None if vector is None else target(vector, stack, ".gpkg"),
        )
        for stack in stacks
    ]


def _is_folder(output: PathLike, scenes: int) -> bool:
    """Whether `output` is a folder, in which files get the names of their scenes."""
    return scenes > 1 or _ends_as_folder(output) or Path(output).is_dir()


def _ends_as_folder(output: PathLike) -> bool:
    return os.fspath(output).endswith((os.sep, "/"))


def _check_outputs(
    jobs: Sequence[_Job], given: Sequence[PathLike | None], read: Sequence[Segmenter | PathLike | None]
) -> None:
    """Refuse outputs that cannot all be written, before any work; make the folders for those of several scenes."""
    from segkit.vector.formats.writer import format_of

    check_apart(
        [path for job in jobs for path in (*job.outputs, *job.own)],
        [*(one for one in read if isinstance(one, (str, os.PathLike))), *(file for job in jobs for file in job.files)],
        advice="name another file"
        if len(jobs) == 1
        else "scenes of one name go to different folders, one call each, and so do maps and probabilities of several "
        "scenes",
    )
    for job in jobs:
        for raster in job.rasters.values():
            if raster.suffix.lower() not in (".tif", ".tiff"):
                raise UsageError(
                    f"{raster}: maps are GeoTIFFs; name a file that ends in .tif, or a folder with a / at its end"
                )
        if job.vector is not None:
            format_of(job.vector)
    for output in (one for one in given if one is not None):
        if _is_folder(output, len(jobs)):
            _make_folder(output, len(jobs))
    for job in jobs:
        for path in job.outputs:
            check_output(path, overwrite=True)


def _make_folder(output: PathLike, scenes: int) -> None:
    folder = Path(output)
    if folder.is_file() or (folder.suffix and not folder.is_dir() and not _ends_as_folder(output)):
        raise UsageError(
            f"{folder} is a file, or named like one; the outputs of {scenes} scene{'s' * (scenes > 1)} need a folder: "
            "name one, with a / at its end"
        )
    check_parent(folder)
    folder.mkdir(exist_ok=True)


def _asked(network: Segmenter, options: Options, polygons: Polygons | None) -> dict[str, Any]:
    """Return everything but the scene that decides what a map's pixels are; its words are told to users."""
    from segkit.inference.device import pick_device
    from segkit.io.region import identity

    # That of a crew is settled, and may not be one of this machine.
    device = pick_device("auto").type if options.device == "auto" else options.device.partition(":")[0]
    left_open = asdict(options) | {"device": device}
    del left_open["batch"]
    return left_open | {
        "model": network.fingerprint(),
        "area of interest": None if polygons is None else identity(polygons),
        "segkit": version("segkit"),
    }


def _identity(job: _Job) -> list[str]:
    """Tell a scene's files apart from changed ones: by name, size and time, remote ones by what their server tells."""
    found = []
    for file in job.files:
        if isinstance(file, Remote):
            found.append(f"{file}, {version_now(file) or 'of unknown version'}")
            continue
        facts = existing(file, "raster").stat()
        changed = datetime.fromtimestamp(facts.st_mtime, UTC).isoformat()
        found.append(f"{file.name}, {facts.st_size} bytes of {changed}")
    return found


def _finished(job: _Job, request: dict[str, Any], *, overwrite: bool) -> Summary | None:
    """Return the summary of a map that was made by the same request, None where there is work to do.

    Raises
    ------
    OutputExistsError
        An output is there that another request made, and may not be overwritten.
    """
    if overwrite:
        return None
    found = {path: _request_of(path) for path in job.rasters.values() if path.exists()}
    for path, (made, _) in found.items():
        if made != request:
            other = sorted(key for key in request if made.get(key) != request[key]) if made else ()
            why = f", made with other settings ({', '.join(other)})" if other else ""
            raise OutputExistsError(
                f"{path} is there already{why}" + ways("add --overwrite to replace it", "name another file")
            )
    if len(found) < len(job.rasters):
        if job.vector is not None:
            check_output(job.vector, overwrite=False)
        return None
    return _summary_of(job.map, found[job.map][1])


def _request_of(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the request that made a raster, empty where that is not known, and the raster's tags."""
    try:
        with open_raster(path) as dataset:
            tags = dataset.tags()
            return json.loads(tags.get("segkit_request", "{}")), tags
    except (RasterError, ValueError):
        return {}, {}


def _summary_of(path: Path, tags: dict[str, str]) -> Summary:
    from segkit.inference.settings import Choice

    return Summary(
        path=path,
        **json.loads(tags["segkit_counts"]),
        bands=int(tags["segkit_bands"]),
        resumed=int(tags["segkit_bands"]),
        seconds=0.0,
        mpx_per_second=0.0,
        peak_memory=peak_memory(),
        choice=Choice(**json.loads(tags["segkit_choice"])),
    )
