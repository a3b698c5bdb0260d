"""The steps that take one scene from its files to its maps, with a journal of finished bands."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from segkit.errors import OutputError
from segkit.inference.executor import SceneJob, results_or_raise
from segkit.inference.journal import Journal
from segkit.inference.outputs import OutputRequest
from segkit.inference.runner_base import CompilationError, OutOfMemoryError
from segkit.inference.settings import PredictOptions, ResolvedSettings
from segkit.inference.summary import Summary, describe_counts, peak_memory, sum_counts, sum_unreadable
from segkit.inference.tasks import Assemble, FindFinished, InspectScene, MergeSeam, PredictBand
from segkit.inference.tiling import Band
from segkit.io.class_table import map_tags
from segkit.io.cog import MapPart, MapStrip
from segkit.models.applicability_index import ApplicabilityIndex
from segkit.models.ensemble import describe_models, list_model_files

if TYPE_CHECKING:
    from segkit.inference.scene_files import PredictionFiles
    from segkit.models.ensemble import AnyModel


def predict_scene(
    model: AnyModel,
    job: PredictionFiles,
    options: PredictOptions,
    request: Mapping[str, Any],
    *,
    sampled_share: float | None = None,
    vrt: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
) -> SceneJob:
    """Predict one scene; bands that an earlier call with the same request finished are reused.

    Parameters
    ----------
    model
        Only its properties are used here; work items use the model of the process that runs them.
    job
        Files of the scene and its raster outputs; the journal is next to the map.
    options
        How to predict.
    request
        Everything that affects the pixels, as compared by `Journal.open`.
    sampled_share
        Share of sampled pixels outside the area of applicability, for the metadata and the summary.

    Yields
    ------
    The work items of each step; see `executor`.

    Raises
    ------
    OutputExistsError
        Finished bands of another request exist, and `overwrite` is false.
    SegkitError
        The scene is damaged, or its map cannot be written.
    """
    started = time.perf_counter()
    name, files, outputs = job.files[0].stem, job.files, tuple(job.rasters)
    with Journal.open(job.map, request, overwrite=overwrite) as journal:
        plan = journal.plan
        while True:
            inspect = [InspectScene(name, files, vrt, options, plan, outputs)]
            [(scene, settings)] = results_or_raise(inspect, (yield inspect))
            journal.record_plan(asdict(settings))
            tiling = settings.tiling(scene.grid, model.stride)
            bands = tiling.bands
            find = [FindFinished(name, journal, tuple(band.index for band in bands))]
            [counts] = results_or_raise(find, (yield find))
            if not options.skip_unreadable and any("unreadable" in one for one in counts.values()):
                journal.refuse_gaps(overwrite=overwrite)
                counts = {}
            resumed = len(counts)
            remaining = [
                PredictBand.from_tiling(scene, options, settings, journal, tiling, band, outputs)
                for band in bands
                if band.index not in counts
            ]
            if remaining and counts and show_progress:
                print(f"{name}: resuming, {resumed} of {len(bands)} bands are finished", file=sys.stderr)
            try:
                if remaining:
                    also = (OutOfMemoryError, CompilationError)
                    results = results_or_raise(remaining, (yield remaining), also=also)
                    counts |= {item.band.index: data for item, data in zip(remaining, results, strict=True)}
                break
            except (OutOfMemoryError, CompilationError) as error:
                settings, text = settings.after_failure(error)
                warnings.warn(text, stacklevel=2)
                plan = asdict(settings)
        seams = [
            MergeSeam(name, journal, len(bands) + upper.index, upper, lower, scene.grid, outputs, settings.backend)
            for upper, lower in pairwise(bands)
            if lower.spans[0].blend_before
        ]
        if seams:
            results = results_or_raise(seams, (yield seams))
            counts |= {item.index: data for item, data in zip(seams, results, strict=True)}
        ordered = [counts[index] for index in sorted(counts)]
        total = sum_counts(ordered) | sum_unreadable(ordered, scene.grid)
        tags = _tags(model, request, settings, total, len(bands), sampled_share)
        assemble = [
            Assemble(
                name, output, part.path, part.grid, tags | _own_tags(model, output), _strips(journal, bands, output),
                part.window,
            )
            for output, path in job.rasters.items()
            for part in job.parts(output) or [MapPart(path, None, scene.grid)]
        ]  # fmt: skip
        try:
            results_or_raise(assemble, (yield assemble))
        except OutputError as error:
            raise OutputError(f"{error}; finished bands are kept, and the same command resumes") from error
        journal.remove()
    seconds = time.perf_counter() - started
    return Summary(
        path=job.result,
        **describe_counts(total, sampled_share),
        bands=len(bands),
        resumed=resumed,
        seconds=seconds,
        mpx_per_second=sum(item.megapixels for item in remaining) / seconds,
        peak_memory=peak_memory(),
        choice=settings,
    )


def _strips(journal: Journal, bands: Sequence[Band], output: OutputRequest) -> tuple[MapStrip, ...]:
    """Return the files of bands and seams that make up a raster output."""
    name = f"{output.name}.tif"
    if output.output.from_pixels:
        return tuple(MapStrip(journal.file_path(band.index, name), band.spans[0].start) for band in bands)
    strips: list[MapStrip] = []
    for band in bands:
        if band.index and band.spans[0].blend_before:
            seam = journal.file_path(len(bands) + band.index - 1, name)
            strips.append(MapStrip(seam, band.spans[0].start))
        strips.append(MapStrip(journal.file_path(band.index, name), band.start))
    return tuple(strips)


def _own_tags(model: AnyModel, output: OutputRequest) -> dict[str, str]:
    """Return the metadata of one raster output that follow from the model."""
    return ApplicabilityIndex.from_model(model).tags if output.output.from_pixels else {}


def _tags(
    model: AnyModel,
    request: Mapping[str, Any],
    settings: ResolvedSettings,
    counts: Mapping[str, Any],
    bands: int,
    sampled_share: float | None,
) -> dict[str, str]:
    """Return the metadata of a map: classes and provenance."""
    return {
        **map_tags(model.task.type, model.task.legend),
        "segkit_model": describe_models(model, request["model"]),
        "segkit_model_files": json.dumps(list_model_files(model)),
        "segkit_tile": str(settings.tile),
        "segkit_overlap": str(settings.overlap),
        "segkit_precision": settings.precision,
        "segkit_backend": settings.backend,
        **({} if settings.agreement is None else {"segkit_agreement": f"{settings.agreement:.6f}"}),
        "segkit_request": json.dumps(request),
        "segkit_choice": json.dumps(asdict(settings)),
        "segkit_counts": json.dumps(counts),
        **({} if sampled_share is None else {"segkit_sampled_share_outside": repr(sampled_share)}),
        "segkit_bands": str(bands),
    }
