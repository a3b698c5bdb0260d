"""Bands that are computed from other bands of a scene: spectral indices, ratios, other formulas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.errors import RasterError, suggest
from segkit.io.band_choice import BandChoice, StackedBand, WantedBands
from segkit.io.band_names import find_band
from segkit.io.band_source import FileBands, MosaicBands
from segkit.io.formula import parse_formula


@dataclass(frozen=True)
class BandFormula:
    """A band to compute, as a recipe declares it.

    Parameters
    ----------
    name
        Its name.
    formula
        Text that `segkit.io.formula` reads.
    bands
        Pairs of a name in the formula and the band that it stands for: a name, or a number counted from 1 through all
        files.
    constants
        Pairs of a name in the formula and its value.
    """

    name: str
    formula: str
    bands: tuple[tuple[str, int | str], ...]
    constants: tuple[tuple[str, float], ...] = ()

    @property
    def needs_reflectance(self) -> bool:
        """Whether bands in other units give more than a multiple of the result."""
        return not parse_formula(self.formula).is_homogeneous(dict(self.constants))


@dataclass(frozen=True)
class DerivedBand:
    """A computed band of a scene; numbers of bands count on after those of its files.

    Parameters
    ----------
    inputs
        Pairs of a name in the formula and the number of a band of the files.
    """

    number: int
    name: str
    declared: BandFormula
    inputs: tuple[tuple[str, int], ...]

    def compute(self, bands: Mapping[int, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Compute the band from the bands with these numbers, float32 (H, W); NaN where it is not defined."""
        values = {name: bands[number] for name, number in self.inputs}
        return parse_formula(self.declared.formula).evaluate(values | dict(self.declared.constants))


class DerivedSource:
    """Source of computed bands, which are computed after all bands of the files are read.

    Parameters
    ----------
    bands
        Computed bands.
    numbers
        The scene's bands in their order: those of its files, layers and computed ones.
    hidden
        Numbers of bands that are inputs and no bands of the scene.
    sources
        Their sources; band `hidden[i]` goes to place i of a stack of their own.
    """

    def __init__(
        self,
        bands: Sequence[DerivedBand],
        numbers: Sequence[int],
        hidden: Sequence[int],
        sources: Sequence[FileBands | MosaicBands],
    ) -> None:
        self.places = [numbers.index(band.number) for band in bands]
        self._bands, self._numbers, self._hidden, self._sources = bands, numbers, hidden, sources

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Compute the bands of a window in the stack (C, H, W); every pixel is valid, bands are NaN where undefined."""
        hidden = np.empty((len(self._hidden), *stack.shape[1:]), dtype=np.float32)
        for source in self._sources:
            masked = ~source.read(window, hidden)
            for place in source.places:
                hidden[place, masked] = np.nan
        known = dict(zip(self._numbers, stack, strict=True)) | dict(zip(self._hidden, hidden, strict=True))
        for place, band in zip(self.places, self._bands, strict=True):
            stack[place] = band.compute(known)
        return np.ones(stack.shape[1:], dtype=bool)


def find_derived(
    formulas: Sequence[BandFormula],
    stack: Sequence[StackedBand],
    wanted: WantedBands,
    chosen: BandChoice,
    trained: Sequence[str] | None = None,
) -> tuple[DerivedBand, ...]:
    """Return the computed bands of a scene.

    The bands of a formula are looked for among those of a model (`wanted.trained`), then in each file, then in all
    files together. If several files have all of them, as with images of several dates, each gives a band.

    Parameters
    ----------
    stack, wanted, chosen
        All bands of the files, those wanted, and those chosen.
    trained
        Names of all bands of a model, with those that it computes; a formula gives as many bands as it has of its name.

    Raises
    ------
    RasterError
        A band does not exist, or may be one of several.
    """
    found: list[DerivedBand] = []
    for one in formulas:
        of_model = _find_in_model(one, wanted, chosen)
        if len(of_model) != sum(name.rpartition(":")[2] == one.name for name in trained or ()):
            of_model = []
        for prefix, inputs in of_model or _find_in_files(one, stack, wanted):
            found.append(DerivedBand(len(stack) + len(found) + 1, f"{prefix}{one.name}", one, inputs))
    return tuple(found)


_Inputs = tuple[tuple[str, int], ...]


def _find_in_model(one: BandFormula, wanted: WantedBands, chosen: BandChoice) -> list[tuple[str, _Inputs]]:
    """Return prefix and inputs of each band that a formula gives, if its inputs are bands of a model; else nothing."""
    names = wanted.trained or ()
    if len(names) != len(chosen.numbers):
        return []
    by_number = {number: place for place, number in enumerate(wanted.bands or range(1, len(names) + 1))}
    groups = [name.rpartition(":")[0] for name in names]
    found = {
        variable: find_band(band, names) if isinstance(band, str) else [by_number[band]] if band in by_number else []
        for variable, band in one.bands
    }
    return [
        (prefix, tuple((variable, chosen.numbers[at]) for variable, at in inputs))
        for prefix, inputs in _by_group(found, groups, [f"{group}:" for group in groups])
    ]


def _find_in_files(one: BandFormula, stack: Sequence[StackedBand], wanted: WantedBands) -> list[tuple[str, _Inputs]]:
    names = wanted.lookup_names(stack)
    steps = pairwise((stack[0], *stack))  # a file of a product may start with another band
    groups = list(accumulate(int(band.number == 1 or band.path is not before.path) for before, band in steps))
    prefixes = [f"{band.path.stem}:" for band in stack]
    candidates = {
        variable: find_band(band, names) if isinstance(band, str) else [band - 1] * (band <= len(stack))
        for variable, band in one.bands
    }
    if found := _by_group(candidates, groups, prefixes):
        return [(prefix, tuple((variable, at + 1) for variable, at in inputs)) for prefix, inputs in found]
    bands = dict(one.bands)
    variable, places = next(each for each in candidates.items() if len(each[1]) != 1)
    what = "has no band" if not places else f"has {len(places)} bands that may be called"
    raise RasterError(
        f"{stack[0].path}: {what} {bands[variable]!r}, which data.indices needs for {one.name}; its bands are "
        f"{', '.join(names)}"
        + suggest("name the bands in data.band_names", f"name the band in data.indices (bands: {{{variable}: NUMBER}})")
    )


def _by_group(
    found: Mapping[str, Sequence[int]], groups: Sequence[int | str], prefixes: Sequence[str]
) -> list[tuple[str, _Inputs]]:
    """Return prefix and inputs for each group (file) that has all bands once; else for all groups together, if they do.

    Parameters
    ----------
    found
        {name in the formula: places of the bands that it may stand for}.
    groups, prefixes
        Of each place.
    """
    complete = [
        tuple((variable, here[0]) for variable, here in in_group.items())
        for group in dict.fromkeys(groups)
        if (in_group := {name: [at for at in places if groups[at] == group] for name, places in found.items()})
        and all(len(here) == 1 for here in in_group.values())
    ]
    if len(complete) > 1:
        return [(prefixes[inputs[0][1]], inputs) for inputs in complete]
    if complete:
        return [("", complete[0])]
    if all(len(places) == 1 for places in found.values()):
        return [("", tuple((variable, places[0]) for variable, places in found.items()))]
    return []
