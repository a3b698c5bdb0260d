"""Summary of a finished map: pixels and areas of its classes, settings, time and memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.io.grid import Grid
from segkit.io.pixel_area import AreaTally
from segkit.io.unreadable import UnreadableGround, blocks_from_json
from segkit.task import Task

if TYPE_CHECKING:
    from segkit.inference.settings import ResolvedSettings


@dataclass(frozen=True)
class Summary:
    """Summary of a map that `predict` made or found finished.

    Parameters
    ----------
    path
        The map.
    pixels
        Pixels of each class by name, including background if the task has one.
    hectares
        True areas of the classes; None if the scene has no CRS, or a local one.
    valid
        Number of pixels with data.
    bands, resumed
        Number of row bands, and how many an earlier, interrupted call had finished (all, if the map existed).
    seconds
        Time from opening the scene to the finished map; 0 if the map existed.
    mpx_per_second
        Millions of scene pixels that this call predicted, per second.
    peak_memory
        Peak main memory of the process since it started, in bytes; None if the system does not report it.
    choice
        Settings: tile, overlap, precision and others.
    share_outside
        Share of the map's pixels outside the area of applicability; None if it is not known.
    share_is_sampled
        Whether `share_outside` is that of a small sample of the pixels. It is that of all pixels if the raster of
        applicability was written.
    unreadable
        The blocks of the scene that could not be read, which are no data in the map; None if there are none.
    outputs
        The other outputs that were asked for, by name: "probabilities", "polygons" and others.
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
    choice: ResolvedSettings
    share_outside: float | None = None
    share_is_sampled: bool = False
    unreadable: UnreadableGround | None = None
    outputs: Mapping[str, Path] = field(default_factory=dict)


class ClassTally:
    """Counts the decided pixels of a scene by class, block by block."""

    def __init__(self, task: Task, grid: Grid) -> None:
        self._task = task
        self._valid = 0
        self._tally = AreaTally(len(task.categories), grid, n_targets=task.n_targets)

    def add(self, targets: NDArray[np.integer[Any]], valid: NDArray[np.bool_], window: Window) -> None:
        """Add the decided targets (T, H, W) of a window, where `valid` (H, W) is true."""
        self._valid += int(valid.sum())
        self._tally.add(targets, valid, window)

    def counts(self) -> dict[str, Any]:
        """Return the counts as a JSON value: `valid`, and by class `pixels` and `hectares`."""
        return {
            "valid": self._valid,
            "pixels": self._by_class(self._tally.pixels),
            "hectares": None if self._tally.hectares is None else self._by_class(self._tally.hectares),
        }

    def _by_class(self, counts: NDArray[Any]) -> dict[str, Any]:
        return {name: counts[target, category].item() for name, target, category in self._task.scored_categories}


def sum_counts(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum the counts of several tallies of the same task; `outside` is in the sum if it is in a part."""

    def add(key: str) -> dict[str, Any] | None:
        parts = [one[key] for one in counts]
        if any(part is None for part in parts):
            return None
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    total = {"valid": sum(one["valid"] for one in counts), "pixels": add("pixels"), "hectares": add("hectares")}
    outside = [one["outside"] for one in counts if "outside" in one]
    return total | ({"outside": sum(outside)} if outside else {})


def sum_unreadable(counts: Sequence[Mapping[str, Any]], grid: Grid) -> dict[str, Any]:
    """Return {"unreadable": the fields of `UnreadableGround`} of the counts of row bands; nothing if all was read."""
    blocks = (block for one in counts for block in blocks_from_json(one.get("unreadable", ())))
    found = UnreadableGround.from_blocks(blocks, grid)
    return {} if found is None else {"unreadable": asdict(found)}


def describe_counts(counts: Mapping[str, Any], sampled_share: float | None) -> dict[str, Any]:
    """Return the fields of a `Summary` that follow from the counts of a map.

    Parameters
    ----------
    sampled_share
        Share of sampled pixels outside the area of applicability; it is used if not all pixels were counted.
    """
    fields = dict(counts)
    outside = fields.pop("outside", None)
    if "unreadable" in fields:
        fields["unreadable"] = UnreadableGround(**fields["unreadable"])
    if outside is None:
        return fields | {"share_outside": sampled_share, "share_is_sampled": sampled_share is not None}
    share = outside / fields["valid"] if fields["valid"] else None
    return fields | {"share_outside": share, "share_is_sampled": False}


def peak_memory() -> int | None:
    """Return the peak main memory of this process in bytes; None if the system does not report it."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # psutil reports the peak on Windows only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
