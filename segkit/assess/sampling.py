"""Sampling: how many points each stratum gets, and which pixels they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas
from numpy.typing import ArrayLike, NDArray
from rasterio.windows import Window

from segkit.errors import UsageError
from segkit.io.grid import Grid
from segkit.maps.class_map import ClassMap, Part
from segkit.runtime.progress import progress

_LAST = 1e-9

Allocation = Literal["proportional", "equal", "neyman"]


def allocate(
    pixels: ArrayLike,
    samples: int,
    *,
    how: Allocation = "proportional",
    minimum: int = 0,
    shares: ArrayLike | None = None,
    accuracies: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Divide a sample among strata.

    Parameters
    ----------
    pixels
        (H,): of each stratum; none gets more.
    samples
        In all.
    how
        In proportion to the share of the area; the same for each; or, Neyman's, in proportion to share times standard
        deviation sqrt(accuracy (1 - accuracy)), which makes the error of the overall accuracy smallest (Cochran 1977,
        "Sampling Techniques", section 5.5).
    minimum
        What each stratum gets at least, so that rare classes have an error bar; what is left is divided as `how` says
        (Olofsson et al. 2014, section 5.1.2).
    shares
        (H,): of the area; by default of the pixels.
    accuracies
        (H,): the user's accuracy that is expected of each stratum, for "neyman".

    Returns
    -------
    int64 (H,), whose sum is `samples`.

    Raises
    ------
    UsageError
        There are fewer pixels than samples, or fewer samples than the minima need.
    """
    available = np.asarray(pixels, dtype=np.int64)
    if samples > available.sum():
        raise UsageError(f"{samples} samples of {available.sum()} pixels; ask for fewer")
    least = np.minimum(available, minimum)
    if least.sum() > samples:
        raise UsageError(
            f"{samples} samples are too few for {len(available)} strata of at least {minimum} each; "
            f"ask for {least.sum()} or more, or for a smaller minimum"
        )
    share = np.asarray(available if shares is None else shares, dtype=np.float64)
    right = np.asarray(np.full(len(available), 0.5) if accuracies is None else accuracies, dtype=np.float64)
    wanted = {
        "proportional": share,
        "equal": np.ones(len(available)),
        "neyman": share * np.sqrt(right * (1 - right)),
    }[how]
    if not (available * wanted).any():
        wanted = np.ones(len(available))
    # A stratum of which nothing is wanted comes last, but comes where the others have no more pixels.
    wanted = np.maximum(wanted, _LAST * wanted.max())
    # Between what each needs at least and has at most there is one factor whose allocation sums to the sample.
    low, high = 0.0, 2.0 * available.max() / wanted.min()
    for _ in range(200):
        middle = (low + high) / 2
        enough = np.clip(middle * wanted, least, available).sum() >= samples
        low, high = (low, middle) if enough else (middle, high)
    exact = np.clip(high * wanted, least, available)
    given: NDArray[np.int64] = np.floor(exact + 1e-9).astype(np.int64)
    # The largest remainders get one more each.
    for at in np.argsort(given - exact, kind="stable")[: samples - int(given.sum())]:
        given[at] += 1
    return given


def draw(
    source: ClassMap, strata: Sequence[Part], numbers: Sequence[int], seed: int, *, show_progress: bool = False
) -> pandas.DataFrame:
    """Draw pixels of each stratum without replacement, each with the same chance, in one pass over the map.

    Parameters
    ----------
    strata, numbers
        What each holds, and how many of its pixels are drawn.
    seed
        The same one draws the same pixels, whatever blocks the map is stored in.

    Returns
    -------
    DataFrame
        ``row``, ``col``, ``stratum`` and ``map_class`` (indices into the map's strata and classes) and ``pixel_ha``, in
        random order.
    """
    # Which of a stratum's pixels, counted row by row, are drawn.
    ranks = [
        np.sort(np.random.default_rng([seed, at]).choice(part.pixels, number, replace=False, shuffle=False))
        for at, (part, number) in enumerate(zip(strata, numbers, strict=True))
    ]
    seen, found = np.zeros(len(ranks), dtype=np.int64), []
    with progress("draw the sample", source.grid.height, "rows", show=show_progress) as advance:
        for strip in source.strips():
            for at, wanted in enumerate(ranks):
                places = np.flatnonzero(strip.strata == at)
                here = wanted[np.searchsorted(wanted, seen[at]) : np.searchsorted(wanted, seen[at] + len(places))]
                if len(here):
                    rows, columns = np.unravel_index(places[here - seen[at]], strip.strata.shape)
                    found.append(
                        pandas.DataFrame(
                            {
                                "row": rows + int(strip.window.row_off),
                                "col": columns,
                                "stratum": at,
                                "map_class": strip.classes[rows, columns].astype(np.int64),
                            }
                        )
                    )
                seen[at] += len(places)
            advance(int(strip.window.height))
    drawn = pandas.concat(found).sort_values(["row", "col"], ignore_index=True)
    drawn["pixel_ha"] = point_hectares(source.grid, drawn["row"].tolist(), drawn["col"].tolist())
    return drawn.iloc[np.random.default_rng([seed, len(ranks)]).permutation(len(drawn))].reset_index(drop=True)


def point_hectares(grid: Grid, rows: Sequence[int], columns: Sequence[int]) -> list[float]:
    """Return the true areas of some pixels."""
    windows = (Window(column, row, 1, 1) for row, column in zip(rows, columns, strict=True))
    return [grid.hectares(window).item() for window in windows]
