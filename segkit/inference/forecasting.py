"""`segkit.forecast`: what a prediction would do, without writing anything: windows, time and memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rasterio.windows import Window

from segkit.inference.device import Device
from segkit.inference.outputs import OutputRequest, needs_model_entropies
from segkit.inference.predict import prepare
from segkit.inference.runner import bytes_per_pixel, open_runner
from segkit.inference.settings import PredictOptions, ResolvedSettings, default_batch_size, resolve_settings
from segkit.inference.tiling import Tiling
from segkit.io.paths import PathLike
from segkit.io.region import PolygonRegion, Region
from segkit.io.scene import Scene
from segkit.task.array_library import to_numpy

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel

_MIN_TIMED_S, _MAX_TIMED = 1.0, 5  # batches are timed until they took as long, or there were as many


@dataclass(frozen=True)
class Forecast:
    """What the prediction of one scene would do.

    Parameters
    ----------
    path
        The map.
    finished
        Whether the same call has finished it before; then there is nothing to do, and no more is known here.
    pixels
        Pixels of the scene.
    windows, bands
        Windows of the network, and row bands. Windows outside of an area of interest are not counted.
    seconds
        Estimated time to read the scene and run the network: that of some windows of the scene on this machine, times
        the number of windows. Writing the map takes little more.
    memory
        Estimated peak memory in bytes: that of this process now, and what a batch needs. On a GPU, of the GPU alone.
    choice
        The settings.
    """

    path: Path
    finished: bool
    pixels: int
    windows: int = 0
    bands: int = 0
    seconds: float = 0.0
    memory: int = 0
    choice: ResolvedSettings | None = None


def forecast(
    model: AnyModel | PathLike | Sequence[AnyModel | PathLike],
    scenes: PathLike | Sequence[PathLike | Sequence[PathLike]],
    output: PathLike,
    **options: Any,
) -> list[Forecast]:
    """Say what `predict` with the same arguments would do, without writing anything: windows, time and memory.

    Parameters
    ----------
    model, scenes, output, options
        As for `predict`; without `executor`, since the time is that of this machine, and `show_progress`.

    Raises
    ------
    SegkitError
        As `predict`, also for a scene that cannot be read.
    """
    prepared = prepare(model, scenes, output, **options)
    found = []
    for job, summary in zip(prepared.jobs, prepared.finished, strict=True):
        if summary is not None:
            found.append(Forecast(summary.path, finished=True, pixels=sum(summary.pixels.values())))
            continue
        scene = prepared.options.open_scene(prepared.network, job.files, vrt=options.get("vrt", False))
        region = None if prepared.polygons is None else PolygonRegion(prepared.polygons, scene.grid)
        outputs = tuple(job.rasters)
        found.append(_forecast_scene(prepared.network, scene, job.result, prepared.options, outputs, region))
    return found


def _forecast_scene(
    model: AnyModel,
    scene: Scene,
    path: Path,
    options: PredictOptions,
    outputs: Sequence[OutputRequest],
    region: Region | None,
) -> Forecast:
    """Resolve the settings of a scene, and time some of its windows.

    Raises
    ------
    SegkitError
        As `segkit.predict`.
    """
    device = options.pick_device(model)
    settings = resolve_settings(model, scene, options, region, outputs=outputs)
    tiling = settings.tiling(scene.grid, model.stride)
    batch = options.batch_size or default_batch_size(model, settings, tiling, device, outputs)
    settings = replace(settings, batch=batch)
    windows = [window for window in _windows(scene, tiling) if region is None or region.mask(window).any()]
    seconds = _time_windows(model, scene, windows, settings, device, outputs)
    needed = bytes_per_pixel(model, settings.precision, outputs, settings.backend)
    needed *= tiling.rows.length * tiling.columns.length
    own = 0 if device.type == "cuda" else psutil.Process().memory_info().rss
    pixels = scene.grid.height * scene.grid.width
    return Forecast(
        path,
        finished=False,
        pixels=pixels,
        windows=len(windows),
        bands=len(tiling.bands),
        seconds=seconds * len(windows),
        memory=own + int(needed * min(batch, max(1, len(windows)))),
        choice=settings,
    )


def _windows(scene: Scene, tiling: Tiling) -> list[Window]:
    """Return the parts of the scene that the windows see."""
    height, width = scene.grid.shape
    return [
        Window(
            column.origin,
            row.origin,
            min(tiling.columns.length, width - column.origin),
            min(tiling.rows.length, height - row.origin),
        )
        for row in tiling.rows.spans
        for column in tiling.columns.spans
    ]


def _time_windows(
    model: AnyModel,
    scene: Scene,
    windows: Sequence[Window],
    settings: ResolvedSettings,
    device: Device,
    outputs: Sequence[OutputRequest],
) -> float:
    """Return the seconds for one window: reading and network, after a first batch that warms up."""
    if not windows:
        return 0.0
    entropies = needs_model_entropies(outputs)
    runner = open_runner(
        model,
        device,
        settings.precision,
        backend=settings.backend,
        tta=settings.tta is not None,
        model_entropies=entropies,
    )
    assert settings.batch is not None
    chosen = windows[: settings.batch]
    tiling = settings.tiling(scene.grid, model.stride)
    count, started = 0, 0.0
    with scene.open() as reader:
        for number in range(_MAX_TIMED + 1):
            if number == 1:
                started = time.perf_counter()
            tiles = [reader.read(window).padded(tiling.rows.length, tiling.columns.length) for window in chosen]
            to_numpy(runner(tiles))
            count += len(tiles) * (number > 0)
            if number and time.perf_counter() - started > _MIN_TIMED_S:
                break
    return (time.perf_counter() - started) / count
