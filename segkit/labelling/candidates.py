"""The windows of scenes that may be chosen, what is known of each, and the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from segkit.errors import DataError, suggest
from segkit.io.scene import Scene
from segkit.labelling.known_ground import KnownGround
from segkit.labelling.lattice import Lattice, describe_windows
from segkit.labelling.outlines import common_crs, outline_windows
from segkit.labelling.selection import choose_windows, standardize
from segkit.runtime.progress import progress

if TYPE_CHECKING:
    from segkit.labelling.measurer import Measurer

_MARGIN = 1e-4  # of a window's side; windows that only share an edge do not overlap


@dataclass(frozen=True, eq=False)
class Candidates:
    """The windows of one scene.

    Parameters
    ----------
    free, labelled
        bool (windows,): which may be chosen, and which have labelled ground; others have too few valid pixels.
    features
        float32 (windows, F).
    uncertainty
        (windows,), 0 to 1; None without a model.
    """

    scene: Scene
    lattice: Lattice
    free: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    features: NDArray[np.float32]
    uncertainty: NDArray[np.float64] | None

    def uncertain(self, index: int) -> float | None:
        """Return the uncertainty of a window."""
        return None if self.uncertainty is None else float(self.uncertainty[index])


def describe_candidates(
    scenes: Sequence[Scene],
    size: str,
    known: Sequence[KnownGround],
    measurer: Measurer | None,
    *,
    min_valid: float,
    show_progress: bool,
) -> list[Candidates]:
    """Read scenes once (with a model twice), and describe the windows of each.

    Raises
    ------
    UsageError, GridError
        The size is not possible, see `Lattice.from_size`.
    DataError
        No window can be chosen.
    """
    lattices = [Lattice.from_size(scene.grid, size, scene.name) for scene in scenes]
    megapixels = sum(scene.grid.height * scene.grid.width for scene in scenes) / 1e6
    found = []
    with progress("windows", megapixels, "Mpx", show=show_progress) as advance:
        described = [describe_windows(scene, lattice, advance) for scene, lattice in zip(scenes, lattices, strict=True)]
    for scene, lattice, (valid, features) in zip(scenes, lattices, described, strict=True):
        seen = valid >= min_valid - 1e-9
        labelled = np.zeros(len(lattice), dtype=bool)
        indices = np.flatnonzero(seen).tolist()
        windows = [lattice.window(index) for index in indices]
        for ground in known if windows else ():
            labelled[indices] |= ground.covers_any(scene.grid, windows)
        free = seen & ~labelled
        uncertainty = None
        if measurer is not None and indices:
            features = _embed(measurer, scene, lattice, indices, features, show_progress=show_progress)
            uncertainty = measurer.measure_windows(scene, lattice)
        found.append(Candidates(scene, lattice, free, labelled, features, uncertainty))
    if not any(one.free.any() for one in found):
        raise DataError(_describe_none(found, min_valid))
    return found


def _embed(
    measurer: Measurer,
    scene: Scene,
    lattice: Lattice,
    indices: Sequence[int],
    features: NDArray[np.float32],
    *,
    show_progress: bool,
) -> NDArray[np.float32]:
    """Return the features that the model's network sees in some windows, NaN in others; of other models `features`."""
    megapixels = len(indices) * lattice.height * lattice.width / 1e6
    with progress("features", megapixels, "Mpx", show=show_progress) as advance:
        found = measurer.embed_windows(scene, lattice, indices, advance)
    if found is None:
        return features
    embedded = np.full((len(lattice), found.shape[1]), np.nan, dtype=np.float32)
    embedded[list(indices)] = found
    return embedded


def _describe_none(found: Sequence[Candidates], min_valid: float) -> str:
    total = sum(len(one.lattice) for one in found)
    labelled = sum(int(one.labelled.sum()) for one in found)
    return (
        f"no window can be chosen: of {total}, {labelled} have labelled ground and {total - labelled} less than "
        f"{min_valid:.0%} valid pixels" + suggest("allow some invalid pixels (--min-valid 0.9)", "give other scenes")
    )


def choose_candidates(found: Sequence[Candidates], number: int, seed: int) -> list[tuple[Candidates, int]]:
    """Choose windows that do not overlap, the most useful first; fewer than `number` if there are no more."""
    found = [one for one in found if (one.free | one.labelled).any()]  # others have nothing to compare
    features = standardize(np.concatenate([one.features for one in found]))
    labelled = np.concatenate([one.labelled for one in found])
    free = np.flatnonzero(np.concatenate([one.free for one in found]))
    weights = np.concatenate(
        [np.ones(len(one.lattice)) if one.uncertainty is None else one.uncertainty for one in found]
    )
    places = [(one, index) for one in found for index in range(len(one.lattice))]
    crs = common_crs([one.scene.grid for one in found])
    boxes = np.concatenate([_outline_free(one, crs) for one in found if one.free.any()])
    margins = np.sqrt(shapely.area(boxes)) * _MARGIN
    tree = shapely.STRtree(shapely.buffer(boxes, -margins, join_style="mitre"))
    chosen = choose_windows(
        features[free],
        weights[free],
        number,
        known=features[labelled],
        seed=seed,
        overlapping=lambda index: tree.query(tree.geometries[index], predicate="intersects"),
    )
    return [places[free[index]] for index in chosen]


def _outline_free(one: Candidates, crs: CRS | None) -> NDArray[Any]:
    windows = [one.lattice.window(index) for index in np.flatnonzero(one.free).tolist()]
    return outline_windows(one.scene.grid, windows, crs)
