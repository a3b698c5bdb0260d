"""Allocate a sample to strata, and draw its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas
from numpy.typing import ArrayLike, NDArray
from rasterio.windows import Window

from segkit.errors import UsageError, suggest
from segkit.io.grid import Grid
from segkit.maps.class_map import ClassMap, ClassTotal
from segkit.runtime.deprecation import renamed_keywords
from segkit.runtime.progress import progress

_MIN_RELATIVE_WEIGHT = 1e-9  # of the largest weight

Allocation = Literal["proportional", "equal", "neyman"]


@renamed_keywords(minimum="min_per_stratum")
def allocate(
    pixels: ArrayLike,
    samples: int,
    *,
    how: Allocation = "proportional",
    min_per_stratum: int = 0,
    shares: ArrayLike | None = None,
    accuracies: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Allocate a sample to strata.

    Parameters
    ----------
    pixels
        (H,): pixels of each stratum, the maximum of its samples.
    samples
        Total number of samples.
    how
        "proportional" to the area; "equal" for all strata; or "neyman": proportional to share of the area x standard
        deviation, sqrt(accuracy (1 - accuracy)), which minimises the standard error of the overall accuracy (Cochran
        1977, "Sampling Techniques", section 5.5).
    min_per_stratum
        Minimum of each stratum, so that rare classes have an error bar; the rest is allocated according to `how`
        (Olofsson et al. 2014, section 5.1.2).
    shares
        (H,): share of the area of each stratum; by default its share of the pixels.
    accuracies
        (H,): expected user's accuracy of each stratum, for "neyman".

    Returns
    -------
    int64 (H,)
        Samples of each stratum; the sum is `samples`.

    Raises
    ------
    UsageError
        There are fewer pixels than samples, or fewer samples than the minimum of all strata needs.
    """
    available = np.asarray(pixels, dtype=np.int64)
    if samples > available.sum():
        raise UsageError(f"{samples} points are asked for, but there are only {available.sum()} pixels; ask for fewer")
    minima = np.minimum(available, min_per_stratum)
    if minima.sum() > samples:
        raise UsageError(
            f"{samples} points are too few for {len(available)} strata of at least {min_per_stratum} each"
            f"{suggest(f'ask for {minima.sum()} or more', 'for a smaller minimum (--min-per-stratum)')}"
        )
    share = np.asarray(available if shares is None else shares, dtype=np.float64)
    accuracy = np.asarray(np.full(len(available), 0.5) if accuracies is None else accuracies, dtype=np.float64)
    weights = {
        "proportional": share,
        "equal": np.ones(len(available)),
        "neyman": share * np.sqrt(accuracy * (1 - accuracy)),
    }[how]
    if not (available * weights).any():
        weights = np.ones(len(available))
    # A stratum of weight 0 still gets samples if the others have no pixels left.
    weights = np.maximum(weights, _MIN_RELATIVE_WEIGHT * weights.max())
    # Bisection for the factor whose allocation, clipped to [minimum, pixels] of each stratum, sums to the sample.
    low, high = 0.0, 2.0 * available.max() / weights.min()
    for _ in range(200):
        middle = (low + high) / 2
        enough = np.clip(middle * weights, minima, available).sum() >= samples
        low, high = (low, middle) if enough else (middle, high)
    exact = np.clip(high * weights, minima, available)
    allocated: NDArray[np.int64] = np.floor(exact + 1e-9).astype(np.int64)
    # Strata with the largest remainders get one more each.
    for index in np.argsort(allocated - exact, kind="stable")[: samples - int(allocated.sum())]:
        allocated[index] += 1
    return allocated


def draw_sample(
    source: ClassMap, strata: Sequence[ClassTotal], numbers: Sequence[int], seed: int, *, show_progress: bool = False
) -> pandas.DataFrame:
    """Draw pixels of each stratum without replacement and with equal probability, in one pass over the map.

    Parameters
    ----------
    strata, numbers
        The strata, and the number of pixels to draw from each.
    seed
        The same seed draws the same pixels, whatever the block size of the map.

    Returns
    -------
    DataFrame
        ``row``, ``col``, ``stratum`` and ``map_class`` (indices into the map's strata and classes) and ``pixel_ha``, in
        random order.
    """
    # Ranks of the drawn pixels among all pixels of the stratum, counted row by row.
    ranks = [
        np.sort(np.random.default_rng([seed, index]).choice(stratum.pixels, number, replace=False, shuffle=False))
        for index, (stratum, number) in enumerate(zip(strata, numbers, strict=True))
    ]
    n_read, parts = np.zeros(len(ranks), dtype=np.int64), []
    with progress("draw the sample", source.grid.height, "rows", show=show_progress) as advance:
        for strip in source.strips():
            for index, drawn_ranks in enumerate(ranks):
                pixels = np.flatnonzero(strip.strata == index)
                first, end = np.searchsorted(drawn_ranks, (n_read[index], n_read[index] + len(pixels)))
                if first < end:
                    in_strip = pixels[drawn_ranks[first:end] - n_read[index]]
                    rows, columns = np.unravel_index(in_strip, strip.strata.shape)
                    parts.append(
                        pandas.DataFrame(
                            {
                                "row": rows + int(strip.window.row_off),
                                "col": columns,
                                "stratum": index,
                                "map_class": strip.classes[rows, columns].astype(np.int64),
                            }
                        )
                    )
                n_read[index] += len(pixels)
            advance(int(strip.window.height))
    drawn = pandas.concat(parts).sort_values(["row", "col"], ignore_index=True)
    drawn["pixel_ha"] = point_hectares(source.grid, drawn["row"].tolist(), drawn["col"].tolist())
    return drawn.iloc[np.random.default_rng([seed, len(ranks)]).permutation(len(drawn))].reset_index(drop=True)


def point_hectares(grid: Grid, rows: Sequence[int], columns: Sequence[int]) -> list[float]:
    """Return the areas of single pixels on the ellipsoid, in hectares."""
    windows = (Window(column, row, 1, 1) for row, column in zip(rows, columns, strict=True))
    return [grid.hectares(window).item() for window in windows]
