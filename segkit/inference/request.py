"""The request of a map: everything that decides its pixels. It is stored in the map, to find finished maps."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.errors import OutputExistsError, RasterError, SegkitError, suggest
from segkit.inference.summary import Summary, describe_counts, peak_memory
from segkit.io.files import check_output, require_file
from segkit.io.paths import FileSet, PathLike
from segkit.io.raster import current_version, open_raster
from segkit.io.remote import Remote, absolute_text
from segkit.runtime.version import VERSION

if TYPE_CHECKING:
    from segkit.inference.scene_files import PredictionFiles
    from segkit.inference.settings import PredictOptions
    from segkit.io.polygons import Polygons
    from segkit.models.ensemble import AnyModel


def given_imagery(
    nodata: float | Sequence[float] | None = None,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
    mask: PathLike | None = None,
    mask_preset: str | None = None,
    layers: Mapping[str, PathLike] | None = None,
) -> dict[str, Any]:
    """Return the given ones of the keys of `segkit.recipe.imagery.Imagery`, as values that JSON can hold."""
    given: dict[str, Any] = {
        key: value if isinstance(value, (int, float)) else list(value)
        for key, value in (("nodata", nodata), ("scale", scale), ("offset", offset))
        if value is not None
    }
    of_mask = {"file": None if mask is None else absolute_text(mask), "preset": mask_preset}
    of_mask = {key: value for key, value in of_mask.items() if value is not None}
    given |= {"mask": of_mask} if of_mask else {}
    return given | ({"layers": {name: absolute_text(path) for name, path in layers.items()}} if layers else {})


def describe_request(
    network: AnyModel, options: PredictOptions, polygons: Polygons | None, imagery: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what affects the pixels of the maps of all scenes of a call; the keys appear in messages.

    Parameters
    ----------
    imagery
        Keys of the recipe that are given for these scenes.
    """
    from segkit.io.region import aoi_fingerprint

    # For an executor the device is resolved, and this machine may not have it.
    device = options.pick_device(network).type if options.device == "auto" else options.device.partition(":")[0]
    request = asdict(options) | {"device": device, "backend": options.backend or network.backend}
    # Finished bands are the same, whatever is done about an error that did not occur in them.
    del request["batch_size"], request["on_read_error"]
    return request | {
        "model": network.fingerprint(),
        "area of interest": None if polygons is None else aoi_fingerprint(polygons),
        "segkit": VERSION,
        **imagery,
    }


def find_mask_files(job: PredictionFiles, network: AnyModel) -> tuple[Path, ...]:
    """Return the files with the quality masks of a scene; none if one is missing, which its prediction reports."""
    mask = network.imagery.quality_mask
    with suppress(SegkitError):
        return () if mask is None else mask.paths(job.files)
    return ()


def describe_scene(job: PredictionFiles, network: AnyModel) -> dict[str, Any]:
    """Return what `describe_request` leaves out: the scene with the files of masks and layers, and its outputs."""
    layers = [layer.require_file() for layer in network.imagery.covering_layers]
    files = (*job.files, *find_mask_files(job, network), *layers)
    return {"scene": _identify_files(files), "outputs": sorted(map(str, job.rasters))}


def _identify_files(files: Sequence[Path]) -> list[str]:
    """Identify the files of a scene, to detect changes: by name, size and time, or by the version from the server."""
    found = []
    for file in files:
        if isinstance(file, Remote):
            found.append(f"{file}, {current_version(file) or 'of unknown version'}")
            continue
        if isinstance(file, FileSet):
            found.append(file.describe())
            continue
        facts = require_file(file, "raster").stat()
        found.append(_identify(file.name, facts))
        with suppress(OSError):  # it does not exist, or no file could have so long a name
            beside = file.with_name(f"{file.name}.msk")  # GDAL reads a mask there
            found.append(_identify(beside.name, beside.stat()))
    return found


def _identify(name: str, facts: os.stat_result) -> str:
    changed = datetime.fromtimestamp(facts.st_mtime, UTC).isoformat()
    return f"{name}, {facts.st_size} bytes of {changed}"


def find_finished(
    job: PredictionFiles, request: dict[str, Any], *, overwrite: bool, skip_unreadable: bool = False
) -> Summary | None:
    """Return the summary of a map that the same request finished; None if there is work to do.

    Raises
    ------
    OutputExistsError
        An output of another request exists, or one in which unreadable blocks are no data without `skip_unreadable`;
        and `overwrite` is false.
    """
    if overwrite:
        return None
    paths = [path for output in job.rasters for path in job.written(output)]
    existing = {path: _read_request(path) for path in paths if path.exists()}
    for path, (stored, _) in existing.items():
        if stored != request:
            changed = sorted(key for key in request if stored.get(key) != request[key]) if stored else ()
            reason = f", made with other settings ({', '.join(changed)})" if changed else ""
            raise OutputExistsError(
                f"{path} is there already{reason}" + suggest("add --overwrite to replace it", "name another file")
            )
    if len(existing) < len(paths):
        for other in (job.vector, job.stac):
            if other is not None:
                check_output(other, overwrite=False)
        return None
    summary = _summary_from_tags(job.result, existing[paths[0]][1])
    if summary.unreadable is not None and not skip_unreadable:
        raise OutputExistsError(
            f"{job.result} is there already, but {summary.unreadable.describe()} no data in it"
            + suggest("add --on-read-error nodata to keep it", "add --overwrite to replace it")
        )
    return summary


def _read_request(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the request that made a raster, empty if unknown, and the tags of the raster."""
    try:
        with open_raster(path) as dataset:
            tags = dataset.tags()
            return json.loads(tags.get("segkit_request", "{}")), tags
    except (RasterError, ValueError, RecursionError):
        return {}, {}


def _summary_from_tags(path: Path, tags: dict[str, str]) -> Summary:
    from segkit.inference.settings import ResolvedSettings

    sampled = tags.get("segkit_sampled_share_outside")
    return Summary(
        path=path,
        **describe_counts(json.loads(tags["segkit_counts"]), None if sampled is None else float(sampled)),
        bands=int(tags["segkit_bands"]),
        resumed=int(tags["segkit_bands"]),
        seconds=0.0,
        mpx_per_second=0.0,
        peak_memory=peak_memory(),
        choice=ResolvedSettings(**json.loads(tags["segkit_choice"])),
    )
