"""The map of a scene in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from segkit.io.class_table import map_tags
from segkit.io.grid import Grid, crs_name
from segkit.io.memory_raster import ArrayDataset, MemoryRaster
from segkit.runtime.tables import Described
from segkit.task import Task

if TYPE_CHECKING:
    from affine import Affine

    from segkit.inference.settings import ResolvedSettings


@dataclass(frozen=True, repr=False, eq=False)
class Prediction(Described):
    """The map of a scene in memory, as `segkit.predict` returns it for a numpy array or an open dataset.

    It can be used as an array (``numpy.asarray``), which is `map`, and given to `segkit.polygons` and `segkit.plot`.

    Parameters
    ----------
    map
        Class values, (H, W); of several overlapping classes (classes, H, W), 1 where a class is.
    probabilities
        Probability of each channel of the model (`Task.channel_names`), float32 (channels, H, W), in steps of 1/254 as
        in files; NaN where the map is no data. None if they were not asked for.
    task
        The classes: names, values, colours.
    grid
        Shape, transform and CRS of the scene.
    pixels, hectares, valid, choice, share_outside
        As in `segkit.inference.summary.Summary`; `share_outside` is that of a small sample of the pixels.
    """

    map: NDArray[Any]
    probabilities: NDArray[np.float32] | None
    task: Task
    grid: Grid
    pixels: Mapping[str, int]
    hectares: Mapping[str, float] | None
    valid: int
    choice: ResolvedSettings
    share_outside: float | None = None

    @property
    def nodata(self) -> int:
        """Value of the map where there is no data."""
        return self.task.nodata

    @property
    def transform(self) -> Affine | None:
        """Affine from (column, row) to CRS coordinates; None if the scene has no georeference."""
        return self.grid.transform if self.grid.georeferenced else None

    @property
    def crs(self) -> CRS | None:
        """The CRS of the scene, if it has one."""
        return self.grid.crs

    def to_raster(self) -> MemoryRaster:
        """Return the map as a raster with the metadata that a file has."""
        return map_raster(self.map, self.task, self.grid)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.map, dtype=dtype, copy=copy)

    def _describe(self) -> tuple[str, list[tuple[str, str]], dict[str, str]]:
        height, width = self.grid.shape
        total = self.valid or 1
        shares = []
        for name, count in self.pixels.items():
            hectares = "" if self.hectares is None else f", {self.hectares[name]:,.1f} ha"
            shares.append((f"  {name}", f"{count:,} pixels, {count / total:.1%}{hectares}"))
        facts = [
            ("size", f"{height} x {width} pixels, {self.valid / (height * width):.1%} with data"),
            ("CRS", crs_name(self.grid.crs)),
            ("no data", str(self.nodata)),
            ("classes", "share of the pixels with data"),
            *shares,
            *(
                []
                if self.share_outside is None
                else [("unlike training", f"{self.share_outside:.0%} of sampled pixels")]
            ),
        ]
        colors = {f"  {row['name']}": row["color"] for row in self.task.legend}
        return "map in memory", facts, colors


def map_raster(values: NDArray[Any], task: Task, grid: Grid) -> MemoryRaster:
    """Return a map in memory, (H, W) or (classes, H, W), as a raster with the metadata that a file has."""
    bands = values if values.ndim == 3 else values[None]

    def read_pixels(indices: list[int], rows: slice, columns: slice) -> NDArray[Any]:
        return bands[:, rows, columns][indices]

    dataset = ArrayDataset(
        "the map in memory",
        read_pixels,
        bands.dtype,
        len(bands),
        grid,
        descriptions=task.band_names,
        nodata=task.nodata,
        tags=map_tags(task.type, task.legend),
    )
    return MemoryRaster("the map in memory", dataset)
