"""Check that an exported model gives the probabilities of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.errors import ModelFileError
from segkit.inference.torch_runner import TorchRunner
from segkit.io.paths import PathLike
from segkit.io.scene import Tile
from segkit.models.ensemble import members
from segkit.models.graph import SAME_VALUE, count_stored_bands
from segkit.models.graph_outputs import split_outputs
from segkit.models.graph_runtime import Graph

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel

MAX_DIFFERENCE = 1e-4  # in probability
MAX_CHANGED_SHARE = 1e-3  # of pixels, whose classes are equally probable
_SIDE_PX = 128  # of generated tiles
_SCENE_TILES = 4


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from segkit's own prediction in fp32.

    Parameters
    ----------
    difference
        The largest difference in probability; of class values, the share of pixels with another value.
    pixels
        Number of pixels that were compared.
    source
        Where they came from.
    """

    difference: float
    pixels: int
    source: str


def check_parity(
    model: AnyModel,
    run: Graph,
    path: Path,
    *,
    tile: int | None,
    least: int,
    decide: bool,
    check_on: PathLike | None,
    nodata: Sequence[Sequence[float]] = (),
) -> Parity:
    """Compare an exported model with the model itself.

    Parameters
    ----------
    run
        The exported model.
    path
        Names it in messages.
    tile
        Side of its windows if it is fixed.
    least
        Smallest side of its windows that is tried.
    decide
        Whether its output is class values.
    check_on
        A scene from which tiles are read; None to make tiles.
    nodata
        As `ExportedGraph` has them.

    Raises
    ------
    ModelFileError
        The difference is too large, or the scene has no valid pixels.
    """
    tiles = generated_tiles(model, tile, least) if check_on is None else scene_tiles(model, check_on, tile)
    source = "tiles made of training pixels" if check_on is None else Path(check_on).name
    reference = _reference(model, decide=decide)
    worst, pixels = 0.0, 0
    for pixel_values in tiles:
        expected = reference(_without_nodata(pixel_values, nodata))
        found = run(pixel_values)
        if [(one.shape, one.dtype) for one in found] != [(one.shape, one.dtype) for one in expected]:
            raise ModelFileError(f"{path}: is not written: its outputs do not have the shapes of the model's")
        pairs = list(zip(found, expected, strict=True))
        pixels += pixel_values[:, 0].size
        if decide:
            worst += sum(float((one != other).any(axis=1).sum()) for one, other in pairs)
        else:
            worst = max(worst, *(_difference(one, other) for one, other in pairs))
    if not pixels:
        raise ModelFileError(f"{source}: has no valid pixels to compare the export with; give another scene")
    parity = Parity(worst / pixels if decide else worst, pixels, source)
    limit = MAX_CHANGED_SHARE if decide else MAX_DIFFERENCE
    if not parity.difference <= limit:
        what = (
            f"{parity.difference:.2%} of its classes differ"
            if decide
            else f"its probabilities differ by up to {parity.difference:.1e}"
        )
        raise ModelFileError(f"{path}: is not written: {what} from segkit's on {source}; at most {limit:g} is allowed")
    return parity


def _without_nodata(pixels: NDArray[np.float32], nodata: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """Return pixels (N, C, H, W) with NaN where a band has a value that means no data."""
    values = np.array(nodata, dtype=np.float32).reshape(-1, pixels.shape[1])
    found = np.isclose(pixels, values[:, None, :, None, None], rtol=SAME_VALUE, atol=0).any(axis=0)
    return np.where(found, np.float32(np.nan), pixels)


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the largest difference; infinite if it is not a number."""
    found = float(np.abs(one - other).max())
    return found if np.isfinite(found) else np.inf


def _reference(model: AnyModel, *, decide: bool) -> Graph:
    """Return what predicts as segkit does, with the outputs of the graph."""
    runner, task, stored = TorchRunner(model, torch.device("cpu"), "fp32"), model.task, count_stored_bands(model)

    def run(pixels: NDArray[np.float32]) -> list[NDArray[Any]]:
        valid = np.logical_or.reduce(np.isfinite(pixels[:, :stored]), axis=1)
        probabilities = runner([Tile(one, mask) for one, mask in zip(pixels, valid, strict=True)])
        if not decide:
            return [output.numpy() for output in split_outputs(task, probabilities)]
        targets = task.decide(probabilities).numpy()
        values = np.stack([task.map_values(one, mask) for one, mask in zip(targets, valid, strict=True)])
        return [values if values.dtype == np.uint8 else values.astype(np.int32)]

    return run


def scene_tiles(model: AnyModel, path: PathLike, side: int | None) -> Iterator[NDArray[np.float32]]:
    """Read tiles of a scene that hold valid pixels, NaN where there are none.

    Raises
    ------
    SegkitError
        The scene cannot be read, or does not have the model's bands.
    """
    scene = model.open_scene(path)
    height, width = (min(side or 2 * _SIDE_PX, size) for size in scene.grid.shape)
    found = 0
    with scene.open() as reader:
        for top in _starts(scene.grid.height, height):
            for left in _starts(scene.grid.width, width):
                tile = reader.read(Window(left, top, width, height))
                if not tile.valid.any():
                    continue
                tile = tile if side is None else tile.padded(side, side)
                yield np.where(tile.valid, tile.pixels, np.float32(np.nan))[None]
                found += 1
                if found == _SCENE_TILES:
                    return


def _starts(length: int, side: int) -> list[int]:
    return sorted({int(at) for at in np.linspace(0, max(0, length - side), _SCENE_TILES)})


def generated_tiles(model: AnyModel, side: int | None, least: int = 1) -> Iterator[NDArray[np.float32]]:
    """Make tiles of patches of training pixels (or of numbers with their mean and deviation), a tenth without data.

    Their sizes, if they are free, are one that the network takes, others that it does not, and the smallest.
    """
    random = np.random.default_rng(0)
    free = [(_SIDE_PX, _SIDE_PX), (_SIDE_PX - 3, _SIDE_PX // 2 + 1), (least, model.stride), (least, least)]
    fixed = side or model.fixed_window_size
    for height, width in [(fixed, fixed)] if fixed else free:
        tile = _draw(model, random, -(-height // 8), -(-width // 8)).repeat(8, axis=1).repeat(8, axis=2)
        tile = tile[:, :height, :width] * random.normal(1, 0.02, (model.bands, height, width)).astype(np.float32)
        tile[:, random.random((height, width)) < 0.1] = np.nan
        yield np.stack([tile, tile[:, ::-1]])


def _draw(model: AnyModel, random: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """Return random training pixels, float32 (C, rows, columns)."""
    first = members(model)[0]
    if first.training_pixels is not None:
        pixels = np.array(first.training_pixels.pixels, dtype=np.float32)
        return pixels[random.integers(0, len(pixels), (rows, columns))].transpose(2, 0, 1)
    noise = torch.from_numpy(random.normal(size=(model.bands, rows, columns)).astype(np.float32))
    return (noise * first.std[0] + first.mean[0]).numpy()
