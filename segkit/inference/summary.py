"""Summary: what a map holds and what it took, counted while it is written."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.io.grid import Grid
from segkit.io.pixel_area import has_areas, pixel_hectares
from segkit.task.task import Task

if TYPE_CHECKING:
    from segkit.inference.settings import Choice


@dataclass(frozen=True)
class Summary:
    """What `predict` wrote.

    Parameters
    ----------
    path
        The map.
    pixels
        Of each class of the task's legend, by name; background's too, where the task has one.
    hectares
        Their true area; None where the scene has no CRS, or a local one.
    valid
        Pixels that were decided.
    bands, resumed
        Bands of rows that the scene was worked in, and how many of them an earlier, interrupted call had finished; all
        of them where the map was there already.
    seconds
        From opening the scene to the finished map, in this call; 0 where the map was there already.
    mpx_per_second
        Millions of scene pixels that this call computed, by that time.
    peak_memory
        Bytes of main memory that the process has held at most since it started; None where the system does not tell.
    choice
        How it was predicted: tile, overlap, precision and the rest.
    """

    path: Path
    pixels: dict[str, int]
    hectares: dict[str, float] | None
    valid: int
    bands: int
    resumed: int
    seconds: float
    mpx_per_second: float
    peak_memory: int | None
    choice: Choice


class Tally:
    """Counts the decisions of one scene, block by block."""

    def __init__(self, task: Task, grid: Grid) -> None:
        self._task, self._grid = task, grid
        self._valid = 0
        self._pixels = np.zeros((task.planes, len(task.categories)), dtype=np.int64)
        self._hectares = np.zeros(self._pixels.shape) if has_areas(grid) else None

    def add(self, planes: NDArray[np.integer[Any]], valid: NDArray[np.bool_], window: Window) -> None:
        """Count decided planes (P, H, W) of a window where `valid` (H, W) is true."""
        self._valid += int(valid.sum())
        kinds = self._pixels.shape[1]
        some = ... if valid.all() else valid
        area = None if self._hectares is None else pixel_hectares(self._grid, window)[some].ravel()
        for plane, categories in enumerate(planes):
            decided = categories[some].ravel()
            self._pixels[plane] += np.bincount(decided, minlength=kinds)
            if self._hectares is not None:
                self._hectares[plane] += np.bincount(decided, weights=area, minlength=kinds)

    def counts(self) -> dict[str, Any]:
        """Return what was counted, as JSON can hold it: `valid`, and by class `pixels` and `hectares`."""
        return {
            "valid": self._valid,
            "pixels": self._by_class(self._pixels),
            "hectares": None if self._hectares is None else self._by_class(self._hectares),
        }

    def _by_class(self, counts: NDArray[Any]) -> dict[str, Any]:
        return {name: counts[plane, category].item() for name, plane, category in self._task.scored}


def total(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum what several tallies of one task counted, in their order."""

    def add(key: str) -> dict[str, Any] | None:
        parts = [one[key] for one in counts]
        if any(part is None for part in parts):
            return None
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    return {"valid": sum(one["valid"] for one in counts), "pixels": add("pixels"), "hectares": add("hectares")}


def peak_memory() -> int | None:
    """Return the bytes of main memory that the process has held at most; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
