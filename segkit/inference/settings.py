"""Choice: how a scene is predicted, of what was asked, what the network needs and what the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from rasterio.windows import Window

from segkit.errors import UsageError
from segkit.inference.device import available_memory, pick_device, pick_precision
from segkit.inference.runner import agreement, bytes_per_pixel, can_compile, operations_per_pixel
from segkit.inference.tiling import Tiling, check_tiling, plan_tiling
from segkit.io.grid import Grid
from segkit.io.region import Region
from segkit.io.scene import Scene, Tile

if TYPE_CHECKING:
    from segkit.models.segmenter import Segmenter

# Measured in docs/predict.md: the seams of a trained network against one pass over the whole scene, and what they cost.
# Each pixel of what two windows share is decided by the one that sees further from there, but for a short transition.
TILE, OVERLAP, RAMP = 1536, 160, 64
_SMALLEST = 256  # pixels along a side that memory may bring a window down to
# bf16 is taken where it decides as fp32 does on this share of ...
_AGREEING = 0.999
# ... at least so many pixels of the scene's first windows, of each of which a square of this side is looked at.
_COMPARED, _SIDE = 2**18, 256
# A CPU gains nothing from more window pixels at once; a GPU nothing from more windows.
_PIXELS_AT_ONCE, _MOST_WINDOWS = 2**20, 64
# Compiled, a U-Net (resnet18) took as long for 160 million window pixels on two cores as it did otherwise, compiling
# counted in, with 84,000 multiplications for each. So it surely pays for three times as many, of more than ...
_WORTH_COMPILING, _WORTH_MULTIPLYING = 2**29, 2**15
_PLENTY = 4096  # bytes for a pixel of a window, which hardly any network needs
_SHARE_OF_MEMORY = 0.5  # of what is free; the rest is for what happens beside the network


@dataclass(frozen=True)
class Options:
    """What may be asked for; None and "auto" leave the choice to `choose`.

    Parameters
    ----------
    tile, overlap
        Pixels along a side of a window at most, and how many of them neighbours share at least.
    batch
        Windows of one forward pass.
    device
        "auto", "cpu", "cuda" or "cuda:N".
    precision
        "auto", "fp32" or "bf16".
    exact
        Whether every pixel is decided with all that it would see in one pass over the whole scene.
    tta
        Test-time augmentation: "d4" averages over the eight symmetries of the square.
    """

    tile: int | None = None
    overlap: int | None = None
    batch: int | None = None
    device: str = "auto"
    precision: str = "auto"
    exact: bool = False
    tta: str | None = None

    def check(self, model: Segmenter) -> None:
        """Refuse what cannot be met with a model, before any work.

        Raises
        ------
        UsageError
            An option is out of range, or contradicts the network or another option.
        """
        pick_precision(self.precision, pick_device(self.device))
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch is {self.batch}; at least 1 window is computed at a time")
        if self.tta not in (None, "d4"):
            raise UsageError(f"tta {self.tta!r} is not known; use d4, or leave it out")
        if self.exact:
            _check_exact(self, model)
        _windows(self, model)


@dataclass(frozen=True)
class Choice:
    """How a scene is predicted: what decides its pixels.

    Parameters
    ----------
    tile, overlap, ramp
        Of the windows; see `plan_axis`.
    fixed
        Whether windows keep exactly `tile` pixels, because the network looks at all of its window.
    precision
        "fp32" or "bf16".
    agreement
        Share of pixels that both precisions decided alike; None where that was not measured.
    tta
        Test-time augmentation: "d4", or None.
    compiled
        Whether the network is compiled, because the scene is large.
    batch, threads
        Windows of one forward pass where nobody asks for another number, and threads that a CPU takes for it: with
        both, some networks add up in another order. None where that is not settled yet, or the device is no CPU.
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

    def tiling(self, grid: Grid, stride: int) -> Tiling:
        """Return the windows of a scene."""
        return plan_tiling(grid, self.tile, self.overlap, stride, ramp=self.ramp, fixed=self.fixed)

    def smaller(self) -> Choice | None:
        """Return the choice of half the tile, for a device that ran out of memory; None where there is none."""
        tile = self.tile // 2
        if self.fixed or tile < max(_SMALLEST, 2 * self.overlap):
            return None
        return replace(self, tile=tile, batch=None)


Measured = dict[tuple[Any, ...], float]  # agreement of bf16 by device and size of window


def choose(
    model: Segmenter,
    scene: Scene,
    options: Options,
    region: Region | None = None,
    *,
    sharing: int = 1,
    measured: Measured | None = None,
) -> Choice:
    """Choose what `options` leave open.

    The tile is the default one where it fits into the memory, or what the network was trained with where it looks at
    all of its window. Precision is bf16 where the device has it natively and the scene's first windows are decided
    as in fp32.

    Parameters
    ----------
    sharing
        How many processes predict on this machine, each with its share of the memory.
    measured
        What earlier calls with this model found, by device and size of window, which is not measured again; what this
        call measures is added.

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
    device = pick_device(options.device)
    precision = "fp32" if options.exact else pick_precision(options.precision, device)
    tile, overlap, ramp, fixed = _windows(options, model)
    choice = Choice(tile, overlap, ramp, fixed, precision, None, options.tta, compiled=False)
    if precision == "bf16" and options.precision == "auto":
        tiling, measured = choice.tiling(scene.grid, model.stride), {} if measured is None else measured
        size = device, tiling.rows.length, tiling.columns.length
        share = measured.get(size)
        if share is None:
            share = agreement(model, device, list(_first_tiles(scene, choice, tiling, region)))
        if share is not None:
            measured[size] = share
        precision = "bf16" if share is not None and share >= _AGREEING else "fp32"
        choice = replace(choice, precision=precision, agreement=share)
    memory = available_memory(device) * _SHARE_OF_MEMORY / sharing
    if options.tile is None and not options.exact and memory < choice.tile**2 * _PLENTY:
        fitting = memory / bytes_per_pixel(model, precision)
        while choice.tile**2 > fitting and (smaller := choice.smaller()) is not None:
            choice = smaller
    tiling = choice.tiling(scene.grid, model.stride)
    work = tiling.pixel_cost * scene.grid.height * scene.grid.width * (8 if options.tta else 1)
    pays = work >= _WORTH_COMPILING and operations_per_pixel(model) >= _WORTH_MULTIPLYING
    return replace(choice, compiled=not options.exact and pays and can_compile(device))


def windows_at_once(model: Segmenter, choice: Choice, tiling: Tiling, device: torch.device) -> int:
    """Return how many windows one forward pass takes: what fits into a GPU, and what keeps a CPU busy."""
    pixels = tiling.rows.length * tiling.columns.length
    if device.type == "cpu":
        return max(1, _PIXELS_AT_ONCE // pixels)
    memory = available_memory(device) * _SHARE_OF_MEMORY / bytes_per_pixel(model, choice.precision)
    return max(1, min(_MOST_WINDOWS, int(memory / pixels)))


def _check_exact(options: Options, model: Segmenter) -> None:
    if options.precision == "bf16":
        raise UsageError("exact means the same numbers as in one pass, which bf16 rounds differently; use fp32 or auto")
    if model.reach is None:
        raise UsageError(
            f"exact was asked for, but the network {model.recipe.model.architecture} pools over its whole window, so "
            "what it says depends on the window; leave exact out, or train a network without global pooling"
        )


def _windows(options: Options, model: Segmenter) -> tuple[int, int, int, bool]:
    """Return tile, overlap, ramp and whether the tile is fixed."""
    context = model.context
    if context is not None and options.tile not in (None, context):
        raise UsageError(
            f"tile {options.tile} was asked for, but the network pools over its whole window and was trained with "
            f"{context} pixels; leave the tile out"
        )
    if options.exact and model.reach is not None:
        # The cut lies in the middle of what two windows share, and both are right that far from their ends.
        least = 2 * (model.reach + 1)
        overlap = max(least, options.overlap or 0)
        tile = max(TILE, 2 * overlap) if options.tile is None else options.tile
        if tile < 2 * overlap:
            raise UsageError(
                f"tile {tile} was asked for, but exact needs {2 * overlap}: a pixel of this network sees "
                f"{model.reach} pixels far; leave the tile out"
            )
        return tile, overlap, 0, False
    tile = (context or TILE) if options.tile is None else options.tile
    most = tile // 4 if tile > model.stride else 0
    overlap = min(OVERLAP, most) if options.overlap is None else options.overlap
    check_tiling(tile, overlap, model.stride)
    return tile, overlap, min(RAMP, overlap), context is not None


def _first_tiles(scene: Scene, choice: Choice, tiling: Tiling, region: Region | None) -> Iterator[Tile]:
    """Read the middle of each window, or all of it where the network needs that, until enough valid pixels came."""
    height, width = scene.grid.shape
    tall, wide = tiling.rows.length, tiling.columns.length
    if not choice.fixed:
        tall, wide = min(_SIDE, tall), min(_SIDE, wide)
    counted = 0
    with scene.open() as reader:
        for row in tiling.rows.spans:
            for column in tiling.columns.spans:
                top = min(row.origin + (tiling.rows.length - tall) // 2, max(0, height - tall))
                left = min(column.origin + (tiling.columns.length - wide) // 2, max(0, width - wide))
                window = Window(left, top, min(wide, width - left), min(tall, height - top))
                if region is not None and not region.mask(window).any():
                    continue
                tile = reader.read(window)
                if tile.valid.any():
                    yield tile.padded(tall, wide) if choice.fixed else tile
                    counted += int(tile.valid.sum())
                if counted >= _COMPARED:
                    return
