"""Work items: independent pieces of the work on a scene, which run in this process or on a worker.

A work item is a small frozen object that can be pickled. It is called with the context of the process that runs it:
model, optimised network, area of interest. Its results are files; what it returns is small.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasterio.windows import Window

from segkit.errors import DataError, ModelFileError
from segkit.inference.bands import merge_seam, predict_band
from segkit.inference.device import Device, default_threads, pick_precision
from segkit.inference.journal import Journal
from segkit.inference.outputs import OutputRequest, needs_model_entropies
from segkit.inference.runner import open_runner
from segkit.inference.runner_base import Runner
from segkit.inference.settings import (
    Measurements,
    PredictOptions,
    ResolvedSettings,
    default_batch_size,
    resolve_settings,
)
from segkit.inference.tiling import Axis, Band, Tiling
from segkit.io.cog import MapStrip, build_cog
from segkit.io.grid import Grid
from segkit.io.paths import list_files
from segkit.io.region import PolygonRegion, aoi_fingerprint, read_aoi
from segkit.io.scene import Scene
from segkit.models.applicability_index import ApplicabilityIndex
from segkit.runtime.memory import retain_freed_memory, trim_memory

if TYPE_CHECKING:
    from segkit.io.polygons import Polygons
    from segkit.models.ensemble import AnyModel

Advance = Callable[[float], None]


class WorkerContext:
    """Everything that work items share in a process.

    Parameters
    ----------
    polygons
        The area of interest.
    show_progress
        Whether to show the progress of steps that last long.
    """

    def __init__(self, model: AnyModel, polygons: Polygons | None = None, *, show_progress: bool = False) -> None:
        self.model, self.show_progress = model, show_progress
        self.workers_per_host = 1  # processes that predict on this machine
        self.measured: Measurements = {}
        self._polygons = polygons
        self._region: tuple[Grid, PolygonRegion] | None = None
        self._index: ApplicabilityIndex | None = None
        self._runner: tuple[object, Runner[Any]] | None = None

    def region(self, grid: Grid) -> PolygonRegion | None:
        """Return the area of interest on a grid; the last one is cached."""
        if self._polygons is None:
            return None
        if self._region is None or self._region[0] != grid:
            self._region = grid, PolygonRegion(self._polygons, grid)
        return self._region[1]

    def index(self, outputs: Sequence[OutputRequest]) -> ApplicabilityIndex | None:
        """Return the applicability index of the model if an output needs it; it is cached."""
        if not any(one.output.from_pixels for one in outputs):
            return None
        self._index = self._index or ApplicabilityIndex.from_model(self.model)
        return self._index

    def runner(
        self,
        device: Device,
        settings: ResolvedSettings,
        scene: object,
        outputs: Sequence[OutputRequest] = (),
    ) -> Runner[Any]:
        """Return the optimised network for some outputs; the last one is cached."""
        entropies = needs_model_entropies(outputs)
        # Torch limits the number of window sizes for which it compiles a network, so compile for each scene.
        key = (
            device,
            settings.backend,
            settings.precision,
            settings.threads if settings.backend != "torch" else None,
            settings.tta,
            entropies,
            scene if settings.compiled else None,
        )
        if self._runner is None or self._runner[0] != key:
            self._runner = None  # frees its memory first
            runner = open_runner(
                self.model,
                device,
                settings.precision,
                backend=settings.backend,
                threads=settings.threads,
                tta=settings.tta is not None,
                compiled=settings.compiled,
                model_entropies=entropies,
            )
            self._runner = key, runner
            trim_memory()  # copying the network leaves much free memory
        return self._runner[1]


@dataclass(frozen=True)
class WorkerInputs:
    """Paths of models and area of interest for other processes, with fingerprints to detect other contents.

    `imagery` are the changes of `with_imagery`.
    """

    models: tuple[Path, ...]
    fingerprint: str
    area: Path | None = None
    layer: str | None = None
    polygons: str | None = None
    imagery: tuple[tuple[str, Any], ...] = ()

    def load_context(self) -> WorkerContext:
        """Read the model and the area of interest.

        Raises
        ------
        SegkitError
            One of them does not exist, or has changed.
        """
        from segkit.models.ensemble import load_model, with_imagery

        model = load_model(self.models)
        if model.fingerprint() != self.fingerprint:
            several = len(self.models) > 1
            raise ModelFileError(
                f"{', '.join(map(str, self.models))}: {'are' if several else 'is'} not the model{'s' * several} with "
                f"which this prediction started; all machines must see the same file{'s' * several}, until the "
                "prediction is finished"
            )
        polygons = None if self.area is None else read_aoi(self.area, self.layer)
        if polygons is not None and aoi_fingerprint(polygons) != self.polygons:
            raise DataError(
                f"{self.area}: does not hold the polygons with which this prediction started; all machines must see "
                "the same file, until the prediction is finished"
            )
        return WorkerContext(with_imagery(model, dict(self.imagery)), polygons)


_cached_context: tuple[WorkerInputs, WorkerContext] | None = None
_worker_lock = threading.Lock()


def run_on_worker(item: WorkItem, inputs: WorkerInputs, workers_per_host: int) -> Any:
    """Run a work item in a worker process, one at a time; its context is cached for the next item."""
    global _cached_context
    with _worker_lock:
        if _cached_context is None or _cached_context[0] != inputs:
            retain_freed_memory()
            _cached_context = None  # frees its memory first
            _cached_context = inputs, inputs.load_context()
        context = _cached_context[1]
        context.workers_per_host = workers_per_host
        return item(context, lambda step: None)


@dataclass(frozen=True)
class WorkItem:
    """A piece of work for the scene `name`."""

    name: str

    @property
    def description(self) -> str:
        """Text for messages."""
        return type(self).__name__.lower()

    @property
    def megapixels(self) -> float:
        """Millions of pixels of the scene that the network predicts."""
        return 0.0

    def __call__(self, context: WorkerContext, advance: Advance) -> Any:
        """Run it; `advance` is called with the millions of pixels of each step."""
        raise NotImplementedError


@dataclass(frozen=True)
class CheckOptions(WorkItem):
    """Check the options against the model and the worker, and resolve the device."""

    options: PredictOptions

    def __call__(self, context: WorkerContext, advance: Advance) -> PredictOptions:
        """See `Options.check`."""
        self.options.check(context.model)
        return replace(self.options, device=str(self.options.pick_device(context.model)))


@dataclass(frozen=True)
class InspectScene(WorkItem):
    """Open a scene and resolve its settings; `plan` holds the settings of an earlier, interrupted call."""

    files: tuple[Path, ...]
    vrt: bool
    options: PredictOptions
    plan: Mapping[str, Any] | None
    outputs: tuple[OutputRequest, ...] = ()

    def __call__(self, context: WorkerContext, advance: Advance) -> tuple[Scene, ResolvedSettings]:
        """Return the scene and its settings."""
        scene = self.options.open_scene(context.model, self.files, vrt=self.vrt)
        return scene, choose_settings(context, scene, self.options, self.outputs, self.plan)


def choose_settings(
    context: WorkerContext,
    scene: Scene,
    options: PredictOptions,
    outputs: Sequence[OutputRequest] = (),
    plan: Mapping[str, Any] | None = None,
) -> ResolvedSettings:
    """Return the settings of a scene, with batch size and threads of this machine; `plan` are those of before."""
    model = context.model
    device = options.pick_device(model)
    if plan:
        settings = ResolvedSettings(**plan)
    else:
        settings = resolve_settings(
            model,
            scene,
            options,
            context.region(scene.grid),
            workers_per_host=context.workers_per_host,
            measured=context.measured,
            outputs=outputs,
        )
    if settings.batch is None:
        tiling = settings.tiling(scene.grid, model.stride)
        settings = replace(settings, batch=default_batch_size(model, settings, tiling, device, outputs))
    if settings.threads is None and device.type == "cpu":
        settings = replace(settings, threads=_count_threads(settings.backend))
    return settings


@dataclass(frozen=True)
class FindFinished(WorkItem):
    """Find the finished bands and seams of a scene, by their index in the journal."""

    journal: Journal
    indexes: tuple[int, ...]

    def __call__(self, context: WorkerContext, advance: Advance) -> dict[int, dict[str, Any]]:
        """Return the data of those whose checksums are correct."""
        data_by_index = {index: self.journal.load_band(index) for index in self.indexes}
        return {index: data for index, data in data_by_index.items() if data is not None}


@dataclass(frozen=True)
class PredictBand(WorkItem):
    """Predict a band into the journal, unless it is finished."""

    scene: Scene
    options: PredictOptions
    settings: ResolvedSettings
    journal: Journal
    tiling: Tiling
    band: Band
    outputs: tuple[OutputRequest, ...]

    @classmethod
    def from_tiling(
        cls,
        scene: Scene,
        options: PredictOptions,
        settings: ResolvedSettings,
        journal: Journal,
        tiling: Tiling,
        band: Band,
        outputs: tuple[OutputRequest, ...],
    ) -> PredictBand:
        """Create the item of one band; it keeps only the rows of the tiling that the band needs."""
        band_tiling = Tiling(Axis(tiling.rows.length, tiling.rows.blend_width, band.spans), tiling.columns)
        return cls(scene.name, scene, options, settings, journal, band_tiling, band, outputs)

    @property
    def description(self) -> str:
        """Number and rows of the band."""
        return f"band {self.band.index}, rows {self.band.spans[0].start} to {self.band.spans[-1].stop - 1}"

    @property
    def megapixels(self) -> float:
        """Millions of pixels of the band."""
        return (self.band.stop - self.band.spans[0].start) * self.scene.grid.width / 1e6

    def __call__(self, context: WorkerContext, advance: Advance) -> dict[str, Any]:
        """Return the counts of the band."""
        if (counts := self.journal.load_band(self.band.index)) is not None:
            return counts
        device = self.options.pick_device(context.model)
        if self.settings.precision == "bf16":
            pick_precision("bf16", device)  # it was chosen on another machine, and may be missing here
        assert self.settings.batch is not None
        with torch_threads(self.settings), self.journal.write_band(self.band.index) as entry:
            entry.data = predict_band(
                context.runner(device, self.settings, self.scene, self.outputs),
                self.scene,
                self.tiling,
                self.band,
                entry.folder,
                self.outputs,
                batch=self.options.batch_size or self.settings.batch,
                region=context.region(self.scene.grid),
                index=context.index(self.outputs),
                advance=advance,
            )
        return entry.data


@dataclass(frozen=True)
class MergeSeam(WorkItem):
    """Decide the rows that two finished bands share, unless that is finished."""

    journal: Journal
    index: int
    upper: Band
    lower: Band
    grid: Grid
    outputs: tuple[OutputRequest, ...]
    backend: str = "torch"

    @property
    def description(self) -> str:
        """Numbers of the bands."""
        return f"the seam of bands {self.upper.index} and {self.lower.index}"

    def __call__(self, context: WorkerContext, advance: Advance) -> dict[str, Any]:
        """Return the counts of the seam."""
        if (counts := self.journal.load_band(self.index)) is not None:
            return counts
        first = self.lower.spans[0]
        with self.journal.write_band(self.index) as entry:
            entry.data = merge_seam(
                self.journal.file_path(self.upper.index, "bottom.tif"),
                self.journal.file_path(self.lower.index, "top.tif"),
                context.model.task,
                self.grid,
                first.start,
                first.blend_before,
                entry.folder,
                self.outputs,
                by_torch=self.backend == "torch",
            )
        return entry.data


@dataclass(frozen=True)
class Assemble(WorkItem):
    """Assemble one raster output, or the part of it in a window, from its strips."""

    output: OutputRequest
    path: Path
    grid: Grid
    tags: Mapping[str, str]
    strips: tuple[MapStrip, ...]
    window: Window | None = None

    def __call__(self, context: WorkerContext, advance: Advance) -> None:
        """Write the file."""
        profile = self.output.profile(context.model.task, self.tags)
        build_cog(self.path, self.grid, profile, self.strips, window=self.window, overwrite=True)


@dataclass(frozen=True)
class Vectorize(WorkItem):
    """Write the polygons of a finished map, unless a newer file exists."""

    map: Path
    vector: Path
    probabilities: Path | None
    overwrite: bool

    def __call__(self, context: WorkerContext, advance: Advance) -> None:
        """Write the file."""
        from segkit.vector import vectorize

        written = max(file.stat().st_mtime for file in list_files(self.map))
        if self.overwrite or not self.vector.exists() or self.vector.stat().st_mtime < written:
            vectorize(
                self.map,
                self.vector,
                probabilities=self.probabilities,
                overwrite=self.overwrite,
                show_progress=context.show_progress,
            )


def _count_threads(backend: str) -> int:
    if backend != "torch":
        return default_threads()
    import torch

    return torch.get_num_threads()


@contextmanager
def torch_threads(settings: ResolvedSettings) -> Iterator[None]:
    """Set the number of torch's threads to that of the settings during the block, if torch computes."""
    if settings.backend != "torch" or settings.threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    if settings.threads == before:
        yield
        return
    torch.set_num_threads(settings.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
