"""Settings of a prediction, resolved from the user's options, the network and the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.windows import Window

from segkit.errors import ModelFileError, SegkitError, UsageError, suggest
from segkit.inference.device import CPU, Device, available_memory, pick_device, pick_precision
from segkit.inference.runner import (
    AMPLE_BYTES_PER_PIXEL,
    bytes_per_pixel,
    open_runner,
    precision_agreement,
    time_forward,
)
from segkit.inference.runner_base import CompilationError, OutOfMemoryError
from segkit.inference.tiling import Tiling, check_tiling, plan_tiling
from segkit.io.grid import Grid
from segkit.io.paths import PathLike
from segkit.io.region import Region
from segkit.io.scene import Scene, Tile
from segkit.models.backends import AUTO, candidate_backends, check_backend, is_quantized, possible_precisions
from segkit.models.ensemble import members, torch_members

if TYPE_CHECKING:
    from segkit.inference.outputs import OutputRequest
    from segkit.models.ensemble import AnyModel

# Chosen by the measurements in docs/predict.md: differences from a single pass over the scene, and their cost.
# In an overlap, each pixel takes the window with more context there, except in the narrow blending zone.
TILE, OVERLAP, BLEND_WIDTH = 1536, 160, 64
_MIN_TILE_PX = 256  # smallest tile if memory is short
# What a block of a scene that cannot be read is: an error, or no data.
FAIL, NODATA = "fail", "nodata"
# With "auto", a model is converted for another backend from this many window pixels: converting and measuring take
# some 15 s, which a third more speed gives back in 45 s at 6 Mpx/s. Another backend is taken if it is so many times
# as fast: a single measurement varies.
_MIN_CONVERTED_PIXELS, _MIN_SPEEDUP = 2**28, 1.1
# bf16 is used if it gives the same class as fp32 on this share of ...
_MIN_AGREEMENT = 0.999
# ... at least this many pixels, taken as squares of this side from the scene's first windows.
_MIN_COMPARED_PIXELS, _COMPARED_SIDE_PX = 2**18, 256
# Larger batches are not faster: in pixels on a CPU, in windows on a GPU.
_CPU_BATCH_PIXELS, _MAX_BATCH = 2**20, 64
# With torch.compile, a U-Net (resnet18; 84,000 multiplications per pixel) broke even at 160 million window pixels on
# two cores, including compilation. So a network is compiled from about three times as many pixels, and from ...
_MIN_COMPILED_PIXELS, _MIN_COMPILED_OPERATIONS = 2**29, 2**15  # ... this many multiplications per pixel
_USABLE_MEMORY_SHARE = 0.5  # of the free memory; the rest is for everything but the network


@dataclass(frozen=True)
class PredictOptions:
    """Options of the user; None and "auto" are resolved by `resolve_settings`.

    Parameters
    ----------
    tile, overlap
        Maximum side of a window, and minimum overlap of neighbouring windows, in pixels.
    batch_size
        Windows per forward pass.
    device
        "auto", "cpu", "cuda", "cuda:N" or "mps".
    precision
        "auto", "fp32" or "bf16".
    exact
        Whether the result is that of a single pass over the whole scene.
    tta
        Test-time augmentation: "d4" averages over the eight rotations and flips of the square.
    backend
        "torch", "onnxruntime", "openvino", or "auto": the fastest one that gives the same classes. None: that of the
        model.
    on_read_error
        "fail": a block of a scene that cannot be read is an error; "nodata": it is no data in the map.
    """

    tile: int | None = None
    overlap: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    precision: str = "auto"
    exact: bool = False
    tta: str | None = None
    backend: str | None = None
    on_read_error: str = FAIL

    @property
    def skip_unreadable(self) -> bool:
        """Whether blocks of a scene that cannot be read are no data."""
        return self.on_read_error == NODATA

    def open_scene(self, model: AnyModel, files: Sequence[PathLike], *, vrt: bool) -> Scene:
        """Open a scene for a model; raises as `segkit.recipe.imagery.open_scene`."""
        return replace(model.open_scene(files, vrt=vrt), skip_unreadable=self.skip_unreadable)

    def check(self, model: AnyModel) -> None:
        """Check the options against a model and this machine, before any work.

        Raises
        ------
        UsageError
            An option is out of range, or not possible with the network or another option.
        """
        _check_backend(self, model)
        if self.device == "mps" and any(
            one.is_classical or one.pixel_branch is not None for one in torch_members(model)
        ):
            raise UsageError("classical learners compute in float64, which mps does not; compute on the CPU")
        device = self.pick_device(model)
        if self.precision != "auto":
            pick_precision(self.precision, device)
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch size is {self.batch_size}; it must be at least 1")
        if self.tta not in (None, "d4"):
            raise UsageError(f"tta {self.tta!r} is not known; use d4, or leave it out")
        if self.on_read_error not in (FAIL, NODATA):
            raise UsageError(f"on_read_error is {self.on_read_error!r}; it is {FAIL!r} or {NODATA!r}")
        if self.exact:
            _check_exact(self, model)
        _resolve_windows(self, model)

    def pick_device(self, model: AnyModel) -> Device:
        """Return the device: that of torch, or `CPU` for a runtime of graphs, which needs no torch.

        Raises
        ------
        UsageError
            See `segkit.inference.device.pick_device`.
        """
        by_torch = model.backend == "torch" and self.backend in (None, "torch", AUTO)
        return pick_device(self.device) if by_torch else CPU


@dataclass(frozen=True)
class ResolvedSettings:
    """All settings that affect the pixels of a map. They are stored in the journal and in the map.

    Parameters
    ----------
    tile, overlap
        As in `PredictOptions`.
    ramp
        Width of the blending zones in pixels; see `plan_axis`.
    fixed
        Whether windows always have `tile` pixels, because the network has a global receptive field.
    precision
        "fp32", "bf16" or "int8".
    agreement
        Share of pixels with the same class as in fp32 of the model's own backend; None if it was not measured.
    tta
        Test-time augmentation: "d4", or None.
    compiled
        Whether the network is compiled, because the scene is large.
    batch, threads
        Default windows per forward pass, and threads that a CPU uses: with other numbers, some networks sum in another
        order. None before they are resolved; `threads` stays None on a GPU.
    backend
        "torch", "onnxruntime" or "openvino".
    speedup
        How many times as fast the backend was as the default one; None if it was not measured.
    """

    tile: int
    overlap: int
    ramp: int
    fixed: bool
    precision: str
    agreement: float | None
    tta: str | None
    compiled: bool
    batch: int | None = None
    threads: int | None = None
    backend: str = "torch"
    speedup: float | None = None

    def tiling(self, grid: Grid, stride: int) -> Tiling:
        """Return the windows of a scene; `stride` is that of the network."""
        return plan_tiling(grid, self.tile, self.overlap, stride, blend_width=self.ramp, fixed=self.fixed)

    def halve_tile(self) -> ResolvedSettings | None:
        """Return the settings with half the tile, for a device that ran out of memory; None if it cannot be halved."""
        tile = self.tile // 2
        if self.fixed or tile < max(_MIN_TILE_PX, 2 * self.overlap):
            return None
        return replace(self, tile=tile, batch=None)

    def after_failure(self, error: OutOfMemoryError | CompilationError) -> tuple[ResolvedSettings, str]:
        """Return the settings for another try after the network failed, and a warning that says what changes.

        Raises
        ------
        OutOfMemoryError
            The error, if the tile cannot be halved.
        """
        if isinstance(error, CompilationError):
            return replace(self, compiled=False), f"{error}; continuing without compilation"
        smaller = self.halve_tile()
        if smaller is None:
            raise error
        return smaller, f"{error}; continuing with tile {smaller.tile}"


# What was measured with a model: what, backend, precision, device, and height and width of windows.
Measurements = dict[tuple[Any, ...], float]


def resolve_settings(
    model: AnyModel,
    scene: Scene,
    options: PredictOptions,
    region: Region | None = None,
    *,
    workers_per_host: int = 1,
    measured: Measurements | None = None,
    outputs: Sequence[OutputRequest] = (),
) -> ResolvedSettings:
    """Resolve options that are None or "auto".

    The tile is the default one, halved until it fits into memory. A network with a global receptive field gets the tile
    that it was trained with. The precision is bf16 if the device supports it natively and it gives the same classes as
    fp32 in the scene's first windows.

    Parameters
    ----------
    workers_per_host
        Number of processes that predict on this machine and share its memory.
    measured
        Agreement and seconds from earlier calls with this model, which are not measured again; new ones are added.
    outputs
        Raster outputs, which need memory for each pixel of a window, too.

    Raises
    ------
    UsageError
        See `Options.check`.
    ModelFileError
        The scene does not have the model's bands.
    RasterError
        The scene is damaged.
    """
    model.check_scene(scene)
    options.check(model)
    device = options.pick_device(model)
    tile, overlap, ramp, fixed = _resolve_windows(options, model)
    settings = ResolvedSettings(tile, overlap, ramp, fixed, "fp32", None, options.tta, compiled=False)
    meter = _Meter(model, scene, settings, device, region, {} if measured is None else measured)
    settings = _choose_backend(settings, options, meter)
    precision = settings.precision
    memory = available_memory(device) * _USABLE_MEMORY_SHARE / workers_per_host
    if options.tile is None and not options.exact and memory < settings.tile**2 * AMPLE_BYTES_PER_PIXEL:
        max_pixels = memory / bytes_per_pixel(model, precision, outputs, settings.backend)
        while settings.tile**2 > max_pixels and (smaller := settings.halve_tile()) is not None:
            settings = smaller
    return replace(settings, compiled=not options.exact and _should_compile(model, scene, settings, device))


class _Meter:
    """Measures how backends and precisions compute a model, on windows of a scene."""

    def __init__(
        self,
        model: AnyModel,
        scene: Scene,
        settings: ResolvedSettings,
        device: Device,
        region: Region | None,
        measured: Measurements,
    ) -> None:
        self.model, self.device = model, device
        self._scene, self._settings, self._region, self._measured = scene, settings, region, measured
        self._tiling = settings.tiling(scene.grid, model.stride)
        self.window_pixels = self._tiling.pixel_cost * scene.grid.height * scene.grid.width  # of the whole scene

    def agreement(self, backend: str, precision: str) -> float | None:
        """Return the share of sampled pixels with the class of fp32; None if no pixel is valid."""
        tiles = _read_sample_tiles(self._scene, self._settings, self._tiling, self._region)
        return self._once(
            "agreement",
            backend,
            precision,
            lambda: precision_agreement(self.model, self.device, list(tiles), precision, backend),
        )

    def seconds(self, backend: str, precision: str) -> float:
        """Return the time for a window of the tiling, after a first one that warms up."""

        def measure() -> float:
            rows, columns = self._tiling.rows.length, self._tiling.columns.length
            settings = replace(self._settings, fixed=True)  # whole windows
            tiles = _read_sample_tiles(self._scene, settings, self._tiling, self._region)
            tile = next(tiles, None) or _flat_tile(self.model.bands, rows, columns)
            return time_forward(open_runner(self.model, self.device, precision, backend=backend), tile)

        found = self._once("seconds", backend, precision, measure)
        assert found is not None
        return found

    def _once(self, what: str, backend: str, precision: str, measure: Callable[[], float | None]) -> float | None:
        key = what, backend, precision, self.device, self._tiling.rows.length, self._tiling.columns.length
        if key not in self._measured:
            found = measure()
            if found is None:
                return None
            self._measured[key] = found
        return self._measured[key]


def _choose_backend(settings: ResolvedSettings, options: PredictOptions, meter: _Meter) -> ResolvedSettings:
    """Choose backend and precision: those that are asked for, or the fastest of those with the classes of fp32."""
    model, own = meter.model, meter.model.backend
    if options.backend != AUTO:
        return _choose_precision(settings, options, meter, options.backend or own)
    convert = meter.window_pixels >= _MIN_CONVERTED_PIXELS
    candidates = candidate_backends(model, convert=convert) if meter.device.type == "cpu" else [own]
    candidates = [one for one in candidates if options.precision in ("auto", *possible_precisions(model, one))]
    if not candidates:
        raise UsageError(_no_precision(options.precision, own))
    default = candidates[0]
    chosen = {default: _choose_precision(settings, options, meter, default)}
    for backend in candidates[1:]:
        with suppress(SegkitError, MemoryError):  # this one is not possible
            chosen[backend] = _choose_precision(settings, options, meter, backend)
    if len(chosen) == 1:
        return chosen[default]
    seconds: dict[str, float] = {}
    for backend, one in chosen.items():
        with nullcontext() if backend == default else suppress(SegkitError, MemoryError):
            seconds[backend] = meter.seconds(backend, one.precision)
    best = min(seconds, key=lambda backend: seconds[backend] * (1 if backend == default else _MIN_SPEEDUP))
    return replace(chosen[best], speedup=seconds[default] / seconds[best])


def _choose_precision(
    settings: ResolvedSettings, options: PredictOptions, meter: _Meter, backend: str
) -> ResolvedSettings:
    """Choose the precision: bf16 if the device has it and it gives the classes of fp32, unless one is asked for.

    Raises
    ------
    ModelFileError
        In fp32 the backend gives other classes than the model's own.
    """
    possible = possible_precisions(meter.model, backend)
    settings = replace(settings, backend=backend, precision=possible[0])
    is_fixed = options.exact or possible[-1] != "bf16"
    asked = possible[0] if is_fixed else pick_precision(options.precision, meter.device)
    if asked == "bf16" and options.precision == "bf16":
        return replace(settings, precision="bf16")
    if asked == "bf16":
        agreement = meter.agreement(backend, "bf16")
        settings = replace(settings, agreement=agreement)
        if agreement is not None and agreement >= _MIN_AGREEMENT:
            return replace(settings, precision="bf16")
    if asked != "int8" and backend != meter.model.backend:
        agreement = meter.agreement(backend, "fp32")
        if agreement is not None and agreement < _MIN_AGREEMENT:
            raise ModelFileError(
                f"{backend} gives {1 - agreement:.2%} of the pixels another class than {meter.model.backend} in fp32, "
                f"more than {1 - _MIN_AGREEMENT:.1%}" + suggest("leave out --backend")
            )
    return settings


def _flat_tile(bands: int, rows: int, columns: int) -> Tile:
    return Tile(np.zeros((bands, rows, columns), dtype=np.float32), np.ones((rows, columns), dtype=bool))


def _should_compile(model: AnyModel, scene: Scene, settings: ResolvedSettings, device: Device) -> bool:
    tiling = settings.tiling(scene.grid, model.stride)
    pixels = tiling.pixel_cost * scene.grid.height * scene.grid.width * (8 if settings.tta else 1)
    if model.is_classical or settings.backend != "torch" or pixels < _MIN_COMPILED_PIXELS:
        return False
    from segkit.inference.torch_runner import can_compile, operations_per_pixel

    return operations_per_pixel(model) >= _MIN_COMPILED_OPERATIONS and can_compile(device)


def default_batch_size(
    model: AnyModel,
    settings: ResolvedSettings,
    tiling: Tiling,
    device: Device,
    outputs: Sequence[OutputRequest] = (),
) -> int:
    """Return the number of windows per forward pass that fits into a GPU, or keeps a CPU busy."""
    pixels = tiling.rows.length * tiling.columns.length
    if device.type == "cpu":
        return max(1, _CPU_BATCH_PIXELS // pixels)
    memory = available_memory(device) * _USABLE_MEMORY_SHARE / bytes_per_pixel(model, settings.precision, outputs)
    return max(1, min(_MAX_BATCH, int(memory / pixels)))


def _check_backend(options: PredictOptions, model: AnyModel) -> None:
    """Raise a UsageError if the backend does not compute the model, or not in this precision or on this device."""
    if options.precision == "bf16" and model.is_classical:
        raise UsageError("precision bf16 was asked for, but classical learners compute in fp32; leave it out")
    backend = options.backend or model.backend
    if is_quantized(model) and options.precision != "auto":
        raise UsageError(
            f"precision {options.precision} was asked for, but the model computes in int8; leave it out, or predict "
            "with the model file (.safetensors)"
        )
    if backend != AUTO:
        check_backend(model, backend)
    elif model.backend == "torch":
        return
    else:
        backend = model.backend
    if backend != "torch" and options.device not in ("auto", "cpu"):
        raise UsageError(
            f"device {options.device} was asked for, but {backend} computes on the CPU; leave it out, or predict with "
            "torch and the model file (.safetensors)"
        )
    if options.precision == "bf16" and options.backend != AUTO and "bf16" not in possible_precisions(model, backend):
        raise UsageError(_no_precision("bf16", backend))


def _no_precision(precision: str, backend: str) -> str:
    return (
        f"precision {precision} was asked for, but {backend} computes in fp32; leave it out, or predict with openvino, "
        "or with torch and the model file (.safetensors)"
    )


def _check_exact(options: PredictOptions, model: AnyModel) -> None:
    if options.precision == "bf16" or is_quantized(model):
        coarse = "int8 rounds differently; predict with the model file (.safetensors)"
        if not is_quantized(model):
            coarse = "bf16 rounds differently; use precision fp32 or auto"
        raise UsageError(f"exact needs fp32, since {coarse}")
    if model.receptive_field is None:
        network = next(one for one in members(model) if one.receptive_field is None).recipe.model.architecture
        raise UsageError(
            f"exact was asked for, but the network {network} pools over its whole window, so "
            "its result depends on the window; leave exact out, or train a network without global pooling"
        )


def _resolve_windows(options: PredictOptions, model: AnyModel) -> tuple[int, int, int, bool]:
    """Return tile, overlap, width of the blending zones, and whether the tile is fixed."""
    fixed_size = model.fixed_window_size
    if fixed_size is not None and options.tile not in (None, fixed_size):
        raise UsageError(
            f"tile {options.tile} was asked for, but the network pools over its whole window and was trained with "
            f"{fixed_size} pixels; leave the tile out"
        )
    if options.exact and model.receptive_field is not None:
        # Without blending, windows are cut in the middle of their overlap, where both have full context.
        overlap = max(2 * (model.receptive_field + 1), options.overlap or 0)
        tile = max(TILE, 2 * overlap) if options.tile is None else options.tile
        if tile < 2 * overlap:
            raise UsageError(
                f"tile {tile} was asked for, but exact needs at least {2 * overlap}: the receptive field of this "
                f"network reaches {model.receptive_field} pixels; leave the tile out"
            )
        return tile, overlap, 0, False
    tile = (fixed_size or TILE) if options.tile is None else options.tile
    if model.is_classical and model.receptive_field is not None and options.overlap is None:
        # What a classical learner sees is so little that windows need no blending: as with `exact`, both windows are
        # complete in the middle of their overlap.
        overlap = 2 * (model.receptive_field + 1)
        if 2 * overlap <= tile:
            return tile, overlap, 0, False
    max_default = tile // 4 if tile > model.stride else 0
    overlap = min(OVERLAP, max_default) if options.overlap is None else options.overlap
    check_tiling(tile, overlap, model.stride)
    return tile, overlap, min(BLEND_WIDTH, overlap), fixed_size is not None


def _read_sample_tiles(
    scene: Scene, settings: ResolvedSettings, tiling: Tiling, region: Region | None
) -> Iterator[Tile]:
    """Read the centre of each window, or the whole window if its size is fixed, until enough pixels are valid."""
    height, width = scene.grid.shape
    tile_height, tile_width = tiling.rows.length, tiling.columns.length
    if not settings.fixed:
        tile_height, tile_width = min(_COMPARED_SIDE_PX, tile_height), min(_COMPARED_SIDE_PX, tile_width)
    counted = 0
    with scene.open() as reader:
        for row in tiling.rows.spans:
            for column in tiling.columns.spans:
                top = min(row.origin + (tiling.rows.length - tile_height) // 2, max(0, height - tile_height))
                left = min(column.origin + (tiling.columns.length - tile_width) // 2, max(0, width - tile_width))
                window = Window(left, top, min(tile_width, width - left), min(tile_height, height - top))
                if region is not None and not region.mask(window).any():
                    continue
                tile = reader.read(window)
                if tile.valid.any():
                    yield tile.padded(tile_height, tile_width) if settings.fixed else tile
                    counted += int(tile.valid.sum())
                if counted >= _MIN_COMPARED_PIXELS:
                    return
