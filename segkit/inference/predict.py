"""`segkit.predict`: checks a request and runs it.

`scene_files` plans the files, and `request` finds maps that are already finished. `scene_job` has the steps of a scene,
`tasks` the work items of each step, and `executor` runs them. `settings` resolves the options, `tiling` lays out
windows and bands, `blending` predicts a band as blocks of probabilities, `bands` writes its classes to files, and the
`journal` stores these until the map is complete.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.errors import SegkitError, UsageError, suggest
from segkit.inference.in_memory import or_in_memory, with_memory_types
from segkit.inference.outputs import OutputRequest
from segkit.inference.request import describe_request, describe_scene, find_finished, find_mask_files, given_imagery
from segkit.inference.scene_files import PredictionFiles, check_inputs_kept, check_outputs, find_scenes, plan_files
from segkit.inference.summary import Summary
from segkit.inference.uncertainty import DISAGREEMENT, check_measures
from segkit.io.cover import lie_side_by_side
from segkit.io.files import remove_leftovers
from segkit.io.paths import PathLike
from segkit.runtime.deprecation import renamed_keywords
from segkit.runtime.garbage_collection import pause_collection
from segkit.runtime.memory import retain_freed_memory, trim_memory

if TYPE_CHECKING:
    from segkit.data.applicability import SceneComparison
    from segkit.inference.executor import Executor, SceneJob
    from segkit.inference.settings import PredictOptions
    from segkit.inference.tasks import WorkerInputs
    from segkit.io.polygons import Polygons
    from segkit.io.scene import Scene
    from segkit.models.ensemble import AnyModel

__all__ = ["Summary", "predict"]

_PROBABILITIES = OutputRequest("probabilities")


@with_memory_types
@renamed_keywords(crew="executor", batch="batch_size")
@or_in_memory
def predict(
    model: AnyModel | PathLike | Sequence[AnyModel | PathLike],
    scenes: PathLike | Sequence[PathLike | Sequence[PathLike]],
    output: PathLike,
    *,
    probabilities: PathLike | None = None,
    confidence: PathLike | None = None,
    uncertainty: str | Sequence[str] = (),
    applicability: PathLike | None = None,
    vector: PathLike | None = None,
    stac: PathLike | None = None,
    like_input: bool = False,
    aoi: PathLike | None = None,
    aoi_layer: str | None = None,
    nodata: float | Sequence[float] | None = None,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
    mask: PathLike | None = None,
    mask_preset: str | None = None,
    layers: Mapping[str, PathLike] | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    exact: bool = False,
    tta: str | None = None,
    backend: str | None = None,
    on_read_error: str = "fail",
    dates: str | None = None,
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
        make up one scene are given as a sequence of their own, files that lie side by side as a `segkit.Mosaic`. Or a
        scene in memory (a numpy array, an xarray.DataArray, an open rasterio dataset), whose map is returned: see
        `segkit.inference.in_memory.predict_in_memory` for its options, such as `valid` and `band_names`.
    output
        The map (.tif), or a folder in which maps are named after their scenes. It must be a folder for several scenes,
        and is created if necessary. For one scene it is a folder if it exists as one or ends with "/".
    probabilities
        Where to write a band of probabilities for each channel of the model: a .tif, or a folder as for `output`.
    confidence
        Where to write the probability of the predicted class, a band for each band of the map; as for `probabilities`.
    uncertainty
        Measures of uncertainty, of which MAP_uncertainty.tif beside the map gets a band each: "entropy", "margin", or
        "disagreement" of several models. 0 is certain, 1 as uncertain as possible; see docs/applicability.md.
    applicability
        Where to write the dissimilarity index of each pixel (float32), as for `output`. Pixels whose index is larger
        than the raster's tag ``segkit_applicability_threshold`` are outside the area of applicability.
    vector
        Where to write the polygons of the map: a file whose suffix gives the format, or a folder of GeoPackages.
    stac
        Where to write a STAC item that describes the map and its other outputs: a .json, or a folder.
    like_input
        Whether the seamless map of a mosaic is written as one file for each file of the mosaic, under its name; and so
        are probabilities and other rasters. Their paths are folders then. Where files overlap, so do their maps.
    aoi
        File of polygons in any CRS. Pixels whose centre is outside are no data; hardly any of them are computed.
    aoi_layer
        Layer of `aoi`, if it has several.
    nodata, scale, offset
        For these scenes, in place of ``data.nodata``, ``data.scale`` and ``data.offset`` of the model's recipe: stored
        value (or values) that mean no data, and value = stored value * scale + offset (one number, or one per band).
    mask
        File with the quality bands of the scene, if it is not where ``data.mask`` of the recipe says. "{name}" in it
        stands for the name of the scene's first file without extension.
    mask_preset
        What the values of the quality bands mean, if not as in the recipe: a name in
        `segkit.io.quality_mask.MASK_PRESETS`. Without a file, they are in the scene.
    layers
        {name: path} of the layers of the recipe (``data.layers``) that are other files for these scenes. A folder or a
        pattern is a mosaic.
    tile, overlap
        Maximum side of the windows of the network, and minimum overlap of neighbouring windows, in pixels. Defaults:
        1536 and 160; for networks that pool over their whole window, the tile size of their training.
    batch_size
        Windows per forward pass. Default: automatic.
    precision
        "fp32", "bf16", or "auto": bf16 if the device supports it natively and it gives the same classes as fp32 in the
        scene's first windows.
    device
        "cpu", "cuda", "cuda:N", "mps" (Apple), or "auto": CUDA if available.
    exact
        Whether the result must be that of a single pass over the whole scene.
    tta
        Test-time augmentation; "d4" averages probabilities over the eight rotations and flips of the square, which
        takes eight times as long.
    backend
        What computes the network: "torch", "onnxruntime", "openvino"; or "auto": the fastest of these on this machine
        that gives the same classes, found by a short measurement. Default: torch, and for an ONNX file a runtime that
        is installed. The others compute on the CPU; a model file is converted for them.
    on_read_error
        What a block of a scene that cannot be read is: "fail", an error; "nodata", no data in the map, with a warning.
    dates
        Pattern of the names of images of several dates, which are stacked to one scene for each place, as in a recipe's
        ``data.train``: "{}_{date:%Y%m%d}".
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
        One per scene, in their order; the map itself of a scene in memory.

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
    prepared = prepare(
        model,
        scenes,
        output,
        probabilities=probabilities,
        confidence=confidence,
        uncertainty=uncertainty,
        applicability=applicability,
        vector=vector,
        stac=stac,
        like_input=like_input,
        aoi=aoi,
        aoi_layer=aoi_layer,
        nodata=nodata,
        scale=scale,
        offset=offset,
        mask=mask,
        mask_preset=mask_preset,
        layers=layers,
        tile=tile,
        overlap=overlap,
        batch_size=batch_size,
        precision=precision,
        device=device,
        exact=exact,
        tta=tta,
        backend=backend,
        on_read_error=on_read_error,
        dates=dates,
        vrt=vrt,
        overwrite=overwrite,
        show_progress=show_progress,
        executor=executor,
    )
    from segkit.inference.executor import run_distributed, run_local
    from segkit.inference.outcomes import summaries_or_raise
    from segkit.inference.tasks import WorkerContext

    scene_jobs = [
        _scene_job(
            job,
            prepared.network,
            prepared.options,
            request,
            summary,
            sampled_share=None if comparison is None else comparison.share_outside,
            vrt=vrt,
            overwrite=overwrite,
            show_progress=show_progress,
        )
        for job, request, summary, comparison in zip(
            prepared.jobs, prepared.requests, prepared.finished, prepared.comparisons, strict=True
        )
    ]
    if executor is None or prepared.inputs is None:
        context = WorkerContext(prepared.network, prepared.polygons, show_progress=show_progress)
        outcomes = list(run_local(scene_jobs, context, show_progress=show_progress))
    else:
        outcomes = run_distributed(scene_jobs, executor, prepared.inputs, show_progress=show_progress)
    trim_memory()
    return summaries_or_raise(prepared.jobs, outcomes, aoi)


@dataclass(frozen=True)
class PreparedRequest:
    """A checked request: what is predicted, with what, and what is finished already; the sequences are by scene."""

    jobs: Sequence[PredictionFiles]
    network: AnyModel
    options: PredictOptions
    polygons: Polygons | None
    inputs: WorkerInputs | None
    requests: Sequence[dict[str, Any]]
    finished: Sequence[Summary | None]
    comparisons: Sequence[SceneComparison | None]


def prepare(
    model: AnyModel | PathLike | Sequence[AnyModel | PathLike],
    scenes: PathLike | Sequence[PathLike | Sequence[PathLike]],
    output: PathLike,
    *,
    probabilities: PathLike | None = None,
    confidence: PathLike | None = None,
    uncertainty: str | Sequence[str] = (),
    applicability: PathLike | None = None,
    vector: PathLike | None = None,
    stac: PathLike | None = None,
    like_input: bool = False,
    aoi: PathLike | None = None,
    aoi_layer: str | None = None,
    nodata: float | Sequence[float] | None = None,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
    mask: PathLike | None = None,
    mask_preset: str | None = None,
    layers: Mapping[str, PathLike] | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    exact: bool = False,
    tta: str | None = None,
    backend: str | None = None,
    on_read_error: str = "fail",
    dates: str | None = None,
    vrt: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
    executor: Executor | None = None,
) -> PreparedRequest:
    """Check a request before any work, and warn of what looks wrong; the parameters are those of `predict`."""
    if aoi_layer is not None and aoi is None:
        raise UsageError("aoi_layer is given, but aoi is not; add the file of polygons, or leave aoi_layer out")
    measures = check_measures(uncertainty)
    rasters = {"map": output, "probabilities": probabilities, "confidence": confidence, "applicability": applicability}
    jobs = plan_files(
        find_scenes(scenes, vrt=vrt, dates=dates), rasters, measures, vector, stac=stac, like_input=like_input, vrt=vrt
    )
    models = [model] if isinstance(model, (str, os.PathLike)) or not isinstance(model, Sequence) else model
    read = [one for one in (*models, aoi, *(layers or {}).values()) if isinstance(one, (str, os.PathLike))]
    check_outputs(jobs, [*rasters.values(), vector, stac], read)

    with pause_collection():
        from segkit.data.applicability import describe_unlike_scenes
        from segkit.data.band_warnings import describe_alpha_bands, describe_partial_layers, describe_unmatched_bands
        from segkit.inference.executor import submit_one
        from segkit.inference.settings import PredictOptions
        from segkit.inference.tasks import CheckOptions
        from segkit.io.region import read_aoi
        from segkit.models.ensemble import load_model, with_imagery

    retain_freed_memory()
    imagery = given_imagery(nodata, scale, offset, mask, mask_preset, layers)
    network = with_imagery(load_model(model), imagery)
    check_inputs_kept(jobs, [file for job in jobs for file in find_mask_files(job, network)])
    options = PredictOptions(tile, overlap, batch_size, device, precision, exact, tta, backend, on_read_error)
    _check_model(network, measures, wants_applicability=applicability is not None)
    polygons = None if aoi is None else read_aoi(aoi, aoi_layer)
    inputs: WorkerInputs | None = None
    if polygons is not None:
        polygons.warn_of_repairs()
    if executor is None:
        options.check(network)
    else:
        jobs, inputs = [job.absolute() for job in jobs], _worker_inputs(network, imagery, aoi, aoi_layer, polygons)
        options = submit_one(executor, inputs, CheckOptions("", options))
    shared = describe_request(network, options, polygons, imagery)
    requests = [shared | describe_scene(job, network) for job in jobs]
    skip = options.skip_unreadable
    finished = [
        find_finished(job, request, overwrite=overwrite, skip_unreadable=skip)
        for job, request in zip(jobs, requests, strict=True)
    ]
    if network.fixed_window_size is not None and not all(finished):
        warnings.warn(
            f"the network pools over its whole window, so it gets windows of {network.fixed_window_size} pixels as in "
            "training, and classes may differ where two windows meet",
            stacklevel=4,
        )
    opened = [
        None if summary is not None else _open_scene(network, options, job.files, vrt=vrt)
        for job, summary in zip(jobs, finished, strict=True)
    ]
    comparisons = [None if scene is None else _compare_scene(network, scene, polygons) for scene in opened]
    readable = [one for one in opened if one is not None]
    for warning in (
        *describe_alpha_bands(readable),
        *describe_partial_layers(readable),
        describe_unmatched_bands(network.band_names, readable),
        describe_unlike_scenes([one for one in comparisons if one is not None]),
    ):
        if warning is not None:
            warnings.warn(warning, stacklevel=4)
    if show_progress and lie_side_by_side([scene.grid for scene in readable]):
        advice = suggest("map them as one scene, without borders between them: --mosaic")
        print(f"these {len(readable)} scenes adjoin{advice}", file=sys.stderr)
    return PreparedRequest(jobs, network, options, polygons, inputs, requests, finished, comparisons)


def _check_model(network: AnyModel, measures: Sequence[str], *, wants_applicability: bool) -> None:
    """Raise a UsageError if an output is not possible with the model."""
    from segkit.models.applicability_index import ApplicabilityIndex
    from segkit.models.ensemble import members

    if DISAGREEMENT in measures and len(members(network)) == 1:
        raise UsageError(
            "disagreement is that of several models, but one is given"
            + suggest("add --average-with MODEL", "name the folder of all folds")
        )
    if wants_applicability:
        ApplicabilityIndex.from_model(network)


def _open_scene(network: AnyModel, options: PredictOptions, files: tuple[Path, ...], *, vrt: bool) -> Scene | None:
    """Open a scene to look at it before the work; None after any error, which its prediction meets and reports."""
    with suppress(Exception):
        return options.open_scene(network, files, vrt=vrt)
    return None


def _compare_scene(network: AnyModel, scene: Scene, polygons: Polygons | None) -> SceneComparison | None:
    """Compare a scene with the training data; None if that is not possible, also because it is damaged."""
    from segkit.data.applicability import compare_with_model
    from segkit.io.region import PolygonRegion

    with suppress(SegkitError):
        return compare_with_model(network, scene, None if polygons is None else PolygonRegion(polygons, scene.grid))
    return None


def _worker_inputs(
    network: AnyModel,
    imagery: Mapping[str, Any],
    aoi: PathLike | None,
    layer: str | None,
    polygons: Polygons | None,
) -> WorkerInputs:
    """Return the paths of the model and the area of interest for workers, and how they read scenes."""
    from segkit.inference.tasks import WorkerInputs
    from segkit.io.region import aoi_fingerprint
    from segkit.models.ensemble import members

    paths = [one.path for one in members(network)]
    found = tuple(path.absolute() for path in paths if path is not None)
    if len(found) < len(paths):
        raise UsageError("the model is only in memory, where workers cannot read it; save it, and pass the file")
    inputs = WorkerInputs(found, network.fingerprint(), imagery=tuple(imagery.items()))
    if polygons is None or aoi is None:
        return inputs
    return replace(inputs, area=Path(aoi).absolute(), layer=layer, polygons=aoi_fingerprint(polygons))


def _scene_job(
    job: PredictionFiles,
    network: AnyModel,
    options: PredictOptions,
    request: dict[str, Any],
    summary: Summary | None,
    *,
    sampled_share: float | None,
    vrt: bool,
    overwrite: bool,
    show_progress: bool,
) -> SceneJob:
    """Run the steps of one scene, from its files to its polygons."""
    from segkit.inference.executor import results_or_raise
    from segkit.inference.journal import Journal
    from segkit.inference.scene_job import predict_scene
    from segkit.inference.stac_map import write_map_item
    from segkit.inference.tasks import Vectorize

    if summary is not None:
        # Remove leftovers of a call that was killed after it had written the map.
        Journal.clear(job.map)
        for path in job.outputs:
            remove_leftovers(path.parent, path.name)
    else:
        summary = yield from predict_scene(
            network,
            job,
            options,
            request,
            sampled_share=sampled_share,
            vrt=vrt,
            overwrite=overwrite,
            show_progress=show_progress,
        )
    if job.vector is not None:
        polygons = [
            Vectorize(
                job.map.stem,
                job.whole(OutputRequest("map")),
                job.vector,
                job.whole(_PROBABILITIES) if _PROBABILITIES in job.rasters else None,
                overwrite,
            )
        ]
        results_or_raise(polygons, (yield polygons))
    if job.stac is not None:
        write_map_item(job, network, overwrite=overwrite)
    return replace(summary, outputs=job.beside_map)
