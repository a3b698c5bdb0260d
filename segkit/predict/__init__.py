"""Predict: scenes to maps.

`engine` turns a scene into finished blocks of probabilities, along windows that `plan` lays out and in the `region`
that is asked for; here the blocks are decided, written and counted (`summary`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.errors import SegkitError, UsageError
from segkit.files import check_output, check_parent
from segkit.predict.summary import Summary, Tally
from segkit.progress import progress
from segkit.raster import MapFormat, PathLike, writing_map
from segkit.task import Task

if TYPE_CHECKING:
    from geopandas import GeoSeries

    from segkit.model import Segmenter
    from segkit.predict.engine import Block

__all__ = ["Summary", "predict"]

# Probabilities are stored as round(254 p), so that 255 is free for no data.
_STEPS = 254


def predict(
    model: Segmenter | PathLike,
    scenes: PathLike | Sequence[PathLike | Sequence[PathLike]],
    output: PathLike,
    *,
    probabilities: PathLike | None = None,
    vector: PathLike | None = None,
    aoi: PathLike | None = None,
    tile: int = 1024,
    overlap: int = 128,
    batch: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    overwrite: bool = False,
    show_progress: bool = False,
) -> list[Summary]:
    """Map whole scenes with a model.

    Each map lies on its scene's grid: every valid pixel is decided, every other one is no data. Where one scene of
    several fails, the others are still mapped.

    Parameters
    ----------
    model
        A model file, or a Segmenter, which is moved to the device.
    scenes
        One raster, or several, each a scene; files whose bands make up one scene are a sequence of their own.
    output
        The map (.tif). With several scenes, a folder, made where it is missing: each map is named after its scene.
    probabilities
        Where to write a band of probabilities per channel of the model: a .tif, or with several scenes a folder.
    vector
        Where to write the map's polygons: a file whose ending names the format, or with several scenes a folder of
        GeoPackages.
    aoi
        Polygons, in any CRS: pixels whose centre lies outside of them are no data, and hardly computed.
    tile, overlap
        Pixels along a side of the windows that the network sees, and how many of them neighbours share at least.
    batch
        Windows of one forward pass; by default as many as keep the device busy.
    precision
        "fp32", "bf16", or "auto": bf16 where the device has it natively.
    device
        "cpu", "cuda", "cuda:N", or "auto": CUDA where there is one.
    overwrite
        Whether files that are there already are replaced.

    Returns
    -------
    list of Summary, one per scene, in their order.

    Raises
    ------
    UsageError, OutputExistsError, MissingFileError
        Told before any work: an option, an output that cannot be written, two scenes of one name.
    SegkitError
        A scene could not be mapped; with several scenes, told at the end with all that failed.
    """
    jobs = _jobs(scenes, output, probabilities, vector)
    _check_outputs(jobs, [output, probabilities, vector], overwrite=overwrite)

    from segkit.model import load
    from segkit.predict.device import pick_device, pick_precision
    from segkit.predict.plan import check_tiling
    from segkit.predict.region import read_polygons

    where = pick_device(device)
    precision = pick_precision(precision, where)
    polygons = None if aoi is None else read_polygons(aoi)
    network = load(model) if isinstance(model, (str, os.PathLike)) else model
    check_tiling(tile, overlap, network.stride)
    options = {"tile": tile, "overlap": overlap, "batch": batch, "device": where, "precision": precision}
    tags = _tags(network, tile=tile, overlap=overlap, precision=precision)

    summaries, failures = [], []
    for job in jobs:
        try:
            summaries.append(_predict_scene(network, job, polygons, options, tags, overwrite, show_progress))
        except SegkitError as error:
            if len(jobs) == 1:
                raise
            failures.append(f"{job.files[0]}: {error}")
    if failures:
        raise SegkitError(
            f"{len(failures)} of {len(jobs)} scenes failed, the other maps are in {output}:\n  " + "\n  ".join(failures)
        )
    return summaries


@dataclass(frozen=True)
class _Job:
    """One scene's files and what is written for it."""

    files: tuple[Path, ...]
    map: Path
    probabilities: Path | None
    vector: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.map, self.probabilities, self.vector) if path is not None]


def _jobs(
    scenes: PathLike | Sequence[PathLike | Sequence[PathLike]],
    output: PathLike,
    probabilities: PathLike | None,
    vector: PathLike | None,
) -> list[_Job]:
    groups = [scenes] if isinstance(scenes, (str, os.PathLike)) else scenes
    stacks = [(Path(one),) if isinstance(one, (str, os.PathLike)) else tuple(map(Path, one)) for one in groups]
    if not stacks or not all(stacks):
        raise UsageError("no scene was named, or one of no files; name at least one raster")

    def target(given: PathLike, stack: tuple[Path, ...], ending: str) -> Path:
        return Path(given) / f"{stack[0].stem}{ending}" if len(stacks) > 1 else Path(given)

    return [
        _Job(
            stack,
            target(output, stack, ".tif"),
            None if probabilities is None else target(probabilities, stack, ".tif"),
            None if vector is None else target(vector, stack, ".gpkg"),
        )
        for stack in stacks
    ]


def _check_outputs(jobs: Sequence[_Job], given: Sequence[PathLike | None], *, overwrite: bool) -> None:
    """Refuse outputs that cannot all be written, before any work; make the folders for those of several scenes."""
    from segkit.vector.write import format_of

    named = Counter(path.resolve() for job in jobs for path in job.outputs)
    for path, times in named.items():
        if times > 1:
            raise UsageError(
                f"{path} would be written {times} times; scenes of one name go to different folders, one call each, "
                "and so do maps and probabilities of several scenes"
            )
    for file in (file for job in jobs for file in job.files):
        if file.resolve() in named:
            raise UsageError(f"{file} is a scene and would be overwritten; name another output")
    for job in jobs:
        for raster in (job.map, job.probabilities):
            if raster is not None and raster.suffix.lower() not in (".tif", ".tiff"):
                raise UsageError(f"{raster}: maps are GeoTIFFs; name a file that ends in .tif")
        if job.vector is not None:
            format_of(job.vector)
    if len(jobs) > 1:
        for folder in (Path(one) for one in given if one is not None):
            _make_folder(folder, len(jobs))
    for job in jobs:
        for path in job.outputs:
            check_output(path, overwrite=overwrite)


def _make_folder(folder: Path, scenes: int) -> None:
    if folder.suffix or folder.is_file():
        raise UsageError(f"{folder}: there are {scenes} scenes, whose outputs need a folder; name one, not a file")
    check_parent(folder)
    folder.mkdir(exist_ok=True)


def _tags(network: Segmenter, **options: object) -> dict[str, str]:
    """Say in a map's metadata what it shows and where it comes from."""
    tags = {
        "segkit_type": network.task.type,
        "segkit_classes": json.dumps(network.task.legend),
        "segkit_version": version("segkit"),
        "segkit_date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if network.path is not None:
        with network.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        tags["segkit_model"] = f"{network.path.name} sha256:{digest}"
    return tags | {f"segkit_{name}": str(value) for name, value in options.items()}


def _predict_scene(
    network: Segmenter,
    job: _Job,
    polygons: GeoSeries | None,
    options: dict[str, Any],
    tags: dict[str, str],
    overwrite: bool,
    show_progress: bool,
) -> Summary:
    from segkit.predict.engine import ahead, predict_blocks
    from segkit.predict.region import PolygonRegion
    from segkit.vector import vectorize

    task = network.task
    scene = network.scene(job.files)
    grid = scene.grid
    tally = Tally(task, grid)
    region = None if polygons is None else PolygonRegion(polygons, grid)
    blocks = predict_blocks(network, scene, region=region, **options)
    with ExitStack() as stack:
        megapixels = grid.height * grid.width / 1e6
        advance = stack.enter_context(progress(scene.name, megapixels, "Mpx", show=show_progress))
        map_ = stack.enter_context(writing_map(job.map, grid, _map_format(task, tags), overwrite=overwrite))
        chances = None
        if job.probabilities is not None:
            form = _probabilities_format(task, tags)
            chances = stack.enter_context(writing_map(job.probabilities, grid, form, overwrite=overwrite))
        # The network runs in a thread, and so its next block is computed while this one is written.
        decided = _decided(task, blocks, with_probabilities=chances is not None)
        for one in stack.enter_context(closing(ahead(decided, depth=2))):
            if one.valid.any():
                map_.write(task.map_values(one.planes, one.valid), one.window)
                tally.add(one.planes, one.valid, one.window)
                if chances is not None and one.probabilities is not None:
                    chances.write(np.where(one.valid, one.probabilities, np.uint8(255)), one.window)
            advance(one.valid.size / 1e6)
    summary = tally.summary(job.map)
    if job.vector is not None:
        vectorize(
            job.map,
            job.vector,
            probabilities=job.probabilities,
            overwrite=overwrite,
            show_progress=show_progress,
        )
    return summary


@dataclass(frozen=True)
class _Decided:
    """A finished block in main memory: planes int16 (P, H, W), probabilities uint8 (C, H, W)."""

    window: Window
    planes: NDArray[np.int16]
    probabilities: NDArray[np.uint8] | None
    valid: NDArray[np.bool_]


def _decided(task: Task, blocks: Generator[Block], *, with_probabilities: bool) -> Generator[_Decided]:
    """Decide blocks where their probabilities lie, so that only what is written comes back from a GPU."""
    with closing(blocks):
        for block in blocks:
            planes = task.decide(block.probabilities[None])[0].cpu().numpy()
            stored = (block.probabilities * _STEPS).round().byte().cpu().numpy() if with_probabilities else None
            yield _Decided(block.window, planes, stored, block.valid)


def _map_format(task: Task, tags: dict[str, str]) -> MapFormat:
    return MapFormat(task.dtype, task.nodata, task.band_names, tags, task.colors)


def _probabilities_format(task: Task, tags: dict[str, str]) -> MapFormat:
    return MapFormat(np.dtype("uint8"), 255, task.channel_names, tags, scale=1 / _STEPS, overviews="average")
