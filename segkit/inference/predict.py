"""`segkit.predict`: checks a request and runs it; finds maps that are already finished.

`scene_job` has the steps of a scene, `tasks` the work items of each step, and `executor` runs them. `settings` resolves
the options, `tiling` lays out windows and bands, `blending` predicts a band as blocks of probabilities, `bands` writes
its classes to files, and the `journal` stores these until the map is complete.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.errors import OutputExistsError, RasterError, ScenesError, SegkitError, UsageError, suggest
from segkit.inference.summary import Summary, peak_memory
from segkit.io.files import check_distinct, check_output, check_parent, remove_leftovers, require_file
from segkit.io.paths import PathLike
from segkit.io.raster import current_version, open_raster
from segkit.io.remote import Remote, as_path
from segkit.runtime.deprecation import renamed_keywords
from segkit.runtime.memory import retain_freed_memory, trim_memory
from segkit.runtime.version import VERSION

if TYPE_CHECKING:
    from segkit.inference.executor import Executor, SceneJob
    from segkit.inference.settings import PredictOptions
    from segkit.inference.tasks import WorkerInputs
    from segkit.io.polygons import Polygons
    from segkit.models.ensemble import AnyModel

__all__ = ["Summary", "predict"]

_MAX_LISTED_SCENES = 3  # in a warning


@renamed_keywords(crew="executor", batch="batch_size")
def predict(
    model: AnyModel | PathLike | Sequence[AnyModel | PathLike],
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
    batch_size: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    exact: bool = False,
    tta: str | None = None,
    vrt: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
    executor: Executor | None = None,
) -> list[Summary]:
    """Map whole scenes with a model.

    Each map has the grid of its scene. All valid pixels get a class, all others are no data. Finished bands of a map
    are stored in the folder OUTPUT.bands until the map is complete; the same call resumes after an interruption. A map
    that the same call has finished before is not computed again. If one of several scenes fails, the others are still
    mapped.

    Parameters
    ----------
    model
        A model file or a Segmenter; or several of the same classes and bands, whose probabilities are averaged: a
        sequence of them, or the folder of a cross-validation. See `segkit.models.ensemble.Ensemble`.
    scenes
        A raster, a folder or a glob of rasters, of which each is a scene, or a sequence of these. Files whose bands
        make up one scene are given as a sequence of their own.
    output
        The map (.tif), or a folder in which maps are named after their scenes. It must be a folder for several scenes,
        and is created if necessary. For one scene it is a folder if it exists as one or ends with "/".
    probabilities
        Where to write a band of probabilities for each channel of the model: a .tif, or a folder as for `output`.
    confidence
        Where to write the probability of the predicted class, a band for each band of the map; as for `probabilities`.
    vector
        Where to write the polygons of the map: a file whose suffix gives the format, or a folder of GeoPackages.
    aoi
        File of polygons in any CRS. Pixels whose centre is outside are no data; hardly any of them are computed.
    aoi_layer
        Layer of `aoi`, if it has several.
    tile, overlap
        Maximum side of the windows of the network, and minimum overlap of neighbouring windows, in pixels. Defaults:
        1536 and 160; for networks that pool over their whole window, the tile size of their training.
    batch_size
        Windows per forward pass. Default: automatic.
    precision
        "fp32", "bf16", or "auto": bf16 if the device supports it natively and it gives the same classes as fp32 in the
        scene's first windows.
    device
        "cpu", "cuda", "cuda:N", or "auto": CUDA if available.
    exact
        Whether the result must be that of a single pass over the whole scene.
    tta
        Test-time augmentation; "d4" averages probabilities over the eight rotations and flips of the square, which
        takes eight times as long.
    vrt
        Whether scenes may be virtual rasters, which can read any other file.
    overwrite
        Whether to replace existing files, and to discard unfinished work of another call.
    executor
        Workers that see the same files under the same paths (`segkit.inference.dask_executor.connect`). By default
        this process does all work. The pixels are the same.

    Returns
    -------
    list of Summary
        One per scene, in their order.

    Raises
    ------
    UsageError, OutputExistsError, MissingFileError
        Before any work: an option is not possible, an output cannot be written, or two scenes have the same name.
    SegkitError
        The scene could not be mapped.
    ScenesError
        Some of several scenes could not be mapped.
    ClusterError
        The workers cannot be reached any more, or some work items failed there; the same call resumes.
    """
    if aoi_layer is not None and aoi is None:
        raise UsageError("aoi_layer is given, but aoi is not; add the file of polygons, or leave aoi_layer out")
    rasters = {"map": output, "probabilities": probabilities, "confidence": confidence}
    jobs = _plan_jobs(_find_scenes(scenes, vrt=vrt), rasters, vector)
    models = [model] if isinstance(model, (str, os.PathLike)) or not isinstance(model, Sequence) else model
    read = [one for one in (*models, aoi) if isinstance(one, (str, os.PathLike))]
    _check_outputs(jobs, [output, probabilities, confidence, vector], read)

    from segkit.inference.executor import run_distributed, run_local, submit_one
    from segkit.inference.settings import PredictOptions
    from segkit.inference.tasks import CheckOptions, WorkerContext
    from segkit.io.region import read_aoi
    from segkit.models.ensemble import load_model

    retain_freed_memory()
    network = load_model(model)
    options = PredictOptions(tile, overlap, batch_size, device, precision, exact, tta)
    polygons = None if aoi is None else read_aoi(aoi, aoi_layer)
    if polygons is not None:
        polygons.warn_of_repairs()
    if executor is None:
        options.check(network)
    else:
        jobs, inputs = [job.absolute() for job in jobs], _worker_inputs(network, aoi, aoi_layer, polygons)
        options = submit_one(executor, inputs, CheckOptions("", options))
    shared = _request(network, options, polygons)
    requests = [shared | {"scene": _scene_identity(job), "outputs": sorted(job.rasters)} for job in jobs]
    finished = [
        _finished_summary(job, request, overwrite=overwrite) for job, request in zip(jobs, requests, strict=True)
    ]
    if network.fixed_window_size is not None and not all(finished):
        warnings.warn(
            f"the network pools over its whole window, so it gets windows of {network.fixed_window_size} pixels as in "
            "training, and classes may differ where two windows meet",
            stacklevel=3,
        )
    waiting = [job.files for job, summary in zip(jobs, finished, strict=True) if summary is None]
    if warning := _compare_scenes(network, waiting, polygons, vrt=vrt):
        warnings.warn(warning, stacklevel=3)
    scene_jobs = [
        _scene_job(job, network, options, request, summary, vrt=vrt, overwrite=overwrite, show_progress=show_progress)
        for job, request, summary in zip(jobs, requests, finished, strict=True)
    ]
    if executor is None:
        context = WorkerContext(network, polygons, show_progress=show_progress)
        outcomes = list(run_local(scene_jobs, context, show_progress=show_progress))
    else:
        outcomes = run_distributed(scene_jobs, executor, inputs, show_progress=show_progress)
    trim_memory()
    return _summaries_or_raise(jobs, outcomes, aoi)


def _summaries_or_raise(
    jobs: Sequence[_Job], outcomes: Sequence[Summary | Exception], aoi: PathLike | None
) -> list[Summary]:
    """Return the summaries if all scenes succeeded; warn about maps without data."""
    from segkit.inference.executor import error_message

    summaries = [outcome for outcome in outcomes if isinstance(outcome, Summary)]
    names = [str(job.files[0]) for job in jobs]
    empty = [
        name
        for name, outcome in zip(names, outcomes, strict=True)
        if isinstance(outcome, Summary) and not outcome.valid
    ]
    if empty:
        _warn_empty(empty, aoi)
    failures = {name: outcome for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, Exception)}
    if failures and len(jobs) == 1:
        raise next(iter(failures.values()))
    if failures:
        details = "".join(f"\n  {name}: {error_message(error)}" for name, error in failures.items())
        raise ScenesError(f"{len(failures)} of {len(jobs)} scenes failed, the others are finished:{details}", summaries)
    return summaries


def _compare_scenes(
    network: AnyModel, scenes: Sequence[tuple[Path, ...]], polygons: Polygons | None, *, vrt: bool
) -> str | None:
    """Return a warning about the scenes that are unlike the training data; None if there are none.

    A scene that cannot be read is left out; its prediction reports the error.
    """
    from segkit.data.applicability import compare_with_models, describe_unlike_scenes
    from segkit.io.region import PolygonRegion
    from segkit.models.ensemble import members

    trainings = [one.training_pixels for one in members(network) if one.training_pixels is not None]
    found = []
    for files in scenes if trainings else ():
        with suppress(SegkitError):
            scene = network.open_scene(files, vrt=vrt)
            region = None if polygons is None else PolygonRegion(polygons, scene.grid)
            found.append(compare_with_models(trainings, scene, region))
    return describe_unlike_scenes(found)


def _warn_empty(scenes: Sequence[str], aoi: PathLike | None) -> None:
    listed = ", ".join(scenes[:_MAX_LISTED_SCENES])
    if len(scenes) > _MAX_LISTED_SCENES:
        listed += f" and {len(scenes) - _MAX_LISTED_SCENES} more"
    where = "" if aoi is None else f" inside {aoi}"
    warnings.warn(
        f"{len(scenes)} scene{'s' * (len(scenes) > 1)} without valid pixels{where}, so the map is all no data: "
        f"{listed}; check the no-data value and the mask of the files",
        stacklevel=5,
    )


@dataclass(frozen=True)
class _Job:
    """The files of a scene and its outputs: rasters by name, and polygons."""

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
    def side_files(self) -> list[Path]:
        """Other files that are written: the journal, and the style of polygons."""
        styles = [] if self.vector is None else [self.vector.with_suffix(".qml")]
        return [self.map.with_name(f"{self.map.name}.bands"), *styles]

    def absolute(self) -> _Job:
        """Return the job with absolute paths, for other processes."""
        return _Job(
            tuple(file.absolute() for file in self.files),
            {name: path.absolute() for name, path in self.rasters.items()},
            None if self.vector is None else self.vector.absolute(),
        )


def _worker_inputs(
    network: AnyModel, aoi: PathLike | None, layer: str | None, polygons: Polygons | None
) -> WorkerInputs:
    """Return the paths of the model and the area of interest for workers."""
    from segkit.inference.tasks import WorkerInputs
    from segkit.io.region import aoi_fingerprint
    from segkit.models.ensemble import members

    paths = [one.path for one in members(network)]
    found = tuple(path.absolute() for path in paths if path is not None)
    if len(found) < len(paths):
        raise UsageError("the model is only in memory, where workers cannot read it; save it, and pass the file")
    if polygons is None or aoi is None:
        return WorkerInputs(found, network.fingerprint())
    return WorkerInputs(found, network.fingerprint(), Path(aoi).absolute(), layer, aoi_fingerprint(polygons))


def _scene_job(
    job: _Job,
    network: AnyModel,
    options: PredictOptions,
    request: dict[str, Any],
    summary: Summary | None,
    *,
    vrt: bool,
    overwrite: bool,
    show_progress: bool,
) -> SceneJob:
    """Run the steps of one scene, from its files to its polygons."""
    from segkit.inference.executor import results_or_raise
    from segkit.inference.journal import Journal
    from segkit.inference.scene_job import predict_scene
    from segkit.inference.tasks import Vectorize

    if summary is not None:
        # Remove leftovers of a call that was killed after it had written the map.
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
        results_or_raise(polygons, (yield polygons))
    return summary


def _find_scenes(scenes: PathLike | Sequence[PathLike | Sequence[PathLike]], *, vrt: bool) -> list[tuple[Path, ...]]:
    """Return the files of each scene; each raster of a folder or glob is a scene."""
    from segkit.data.pairing import RASTER_SUFFIXES, expand_paths

    suffixes = (*RASTER_SUFFIXES, ".vrt") if vrt else RASTER_SUFFIXES
    found: list[tuple[Path, ...]] = []
    for entry in [scenes] if isinstance(scenes, (str, os.PathLike)) else scenes:
        if isinstance(entry, (str, os.PathLike)):
            found += [(file,) for file in expand_paths(as_path(entry), "scenes", suffixes)]
        else:
            found.append(tuple(file for path in entry for file in expand_paths(as_path(path), "scenes", suffixes)))
    if not found or not all(found):
        raise UsageError("no scenes, or a scene without files; name at least one raster")
    return found


def _plan_jobs(
    stacks: Sequence[tuple[Path, ...]], rasters: Mapping[str, PathLike | None], vector: PathLike | None
) -> list[_Job]:
    def target(given: PathLike, stack: tuple[Path, ...], ending: str) -> Path:
        return Path(given) / f"{stack[0].stem}{ending}" if _is_folder(given, len(stacks)) else Path(given)

    return [
        _Job(
            stack,
            {name: target(path, stack, ".tif") for name, path in rasters.items() if path is not None},
            None if vector is None else target(vector, stack, ".gpkg"),
        )
        for stack in stacks
    ]


def _is_folder(output: PathLike, scenes: int) -> bool:
    """Whether `output` is a folder, in which files are named after their scenes."""
    return scenes > 1 or _ends_as_folder(output) or Path(output).is_dir()


def _ends_as_folder(output: PathLike) -> bool:
    return os.fspath(output).endswith((os.sep, "/"))


def _check_outputs(jobs: Sequence[_Job], given: Sequence[PathLike | None], read: Sequence[PathLike]) -> None:
    """Check before any work that all outputs can be written; create the folders for outputs of several scenes."""
    from segkit.vector.formats.writer import find_format

    check_distinct(
        [path for job in jobs for path in (*job.outputs, *job.side_files)],
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
            "name one that ends with /"
        )
    check_parent(folder)
    folder.mkdir(exist_ok=True)


def _request(network: AnyModel, options: PredictOptions, polygons: Polygons | None) -> dict[str, Any]:
    """Return everything but the scene that affects the pixels of a map; the keys appear in messages."""
    from segkit.inference.device import pick_device
    from segkit.io.region import aoi_fingerprint

    # For an executor the device is resolved, and this machine may not have it.
    device = pick_device("auto").type if options.device == "auto" else options.device.partition(":")[0]
    request = asdict(options) | {"device": device}
    del request["batch_size"]
    return request | {
        "model": network.fingerprint(),
        "area of interest": None if polygons is None else aoi_fingerprint(polygons),
        "segkit": VERSION,
    }


def _scene_identity(job: _Job) -> list[str]:
    """Identify the files of a scene, to detect changes: by name, size and time, or by the version from the server."""
    found = []
    for file in job.files:
        if isinstance(file, Remote):
            found.append(f"{file}, {current_version(file) or 'of unknown version'}")
            continue
        facts = require_file(file, "raster").stat()
        changed = datetime.fromtimestamp(facts.st_mtime, UTC).isoformat()
        found.append(f"{file.name}, {facts.st_size} bytes of {changed}")
    return found


def _finished_summary(job: _Job, request: dict[str, Any], *, overwrite: bool) -> Summary | None:
    """Return the summary of a map that the same request finished; None if there is work to do.

    Raises
    ------
    OutputExistsError
        An output of another request exists, and `overwrite` is false.
    """
    if overwrite:
        return None
    existing = {path: _read_request(path) for path in job.rasters.values() if path.exists()}
    for path, (stored, _) in existing.items():
        if stored != request:
            changed = sorted(key for key in request if stored.get(key) != request[key]) if stored else ()
            reason = f", made with other settings ({', '.join(changed)})" if changed else ""
            raise OutputExistsError(
                f"{path} is there already{reason}" + suggest("add --overwrite to replace it", "name another file")
            )
    if len(existing) < len(job.rasters):
        if job.vector is not None:
            check_output(job.vector, overwrite=False)
        return None
    return _summary_from_tags(job.map, existing[job.map][1])


def _read_request(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the request that made a raster, empty if unknown, and the tags of the raster."""
    try:
        with open_raster(path) as dataset:
            tags = dataset.tags()
            return json.loads(tags.get("segkit_request", "{}")), tags
    except (RasterError, ValueError):
        return {}, {}


def _summary_from_tags(path: Path, tags: dict[str, str]) -> Summary:
    from segkit.inference.settings import ResolvedSettings

    return Summary(
        path=path,
        **json.loads(tags["segkit_counts"]),
        bands=int(tags["segkit_bands"]),
        resumed=int(tags["segkit_bands"]),
        seconds=0.0,
        mpx_per_second=0.0,
        peak_memory=peak_memory(),
        choice=ResolvedSettings(**json.loads(tags["segkit_choice"])),
    )
