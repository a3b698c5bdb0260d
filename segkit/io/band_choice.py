"""Which bands of a scene are read: by number, by name, or all but those that are masks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from segkit.errors import GridError, RasterError, suggest
from segkit.io.alpha_bands import has_varying_values
from segkit.io.band_names import common_names, find_band, match_bands


class StackedBand(NamedTuple):
    """A band of the stack of all files of a scene.

    Parameters
    ----------
    name
        Its description, or its number in the file.
    lookup_name
        The name by which it is looked for, see `segkit.io.band_names.read_names`.
    alpha, resampled
        Whether it is tagged as alpha, and whether its file is resampled.
    path, number
        Its file, and its number in it, from 1.
    """

    name: str
    lookup_name: str
    alpha: bool
    resampled: bool
    path: Path
    number: int


class AlphaBand(NamedTuple):
    """A band that is tagged as alpha: its file, its number in it, and its number in the scene."""

    path: Path
    number: int
    place: int


class BandChoice(NamedTuple):
    """Chosen bands of a scene.

    Parameters
    ----------
    numbers, names
        Numbers in the stack, from 1, and names of the bands.
    alpha_masks
        Alpha bands that are not chosen, and so mask others.
    alpha_imagery
        Alpha bands that are chosen although nobody asked for them, because a model needs as many bands.
    """

    numbers: tuple[int, ...]
    names: tuple[str, ...]
    alpha_masks: tuple[AlphaBand, ...] = ()
    alpha_imagery: tuple[AlphaBand, ...] = ()


class WantedBands(NamedTuple):
    """What a recipe and a model say about the bands of a scene.

    Parameters
    ----------
    bands
        Names, or numbers counted from 1 through all files; None: all but alpha and quality bands.
    band_names
        Names of all bands of the stack, in place of those in the files. An alpha band with the name of a spectral band
        is imagery.
    trained
        Names of the bands that a model was trained on. They are looked for first, in the files and then in
        `band_names`; if each is found once, in any order, these are read, else `bands`. If the files have as many bands
        as the model with an alpha band whose values vary, it is read as imagery.
    """

    bands: Sequence[int | str] | None = None
    band_names: Sequence[str] | None = None
    trained: Sequence[str] | None = None

    def choose(
        self, stack: Sequence[StackedBand], quality: Collection[tuple[Path, int]] = (), *, vrt: bool | None = None
    ) -> BandChoice:
        """Return the chosen bands of a stack.

        Parameters
        ----------
        quality
            File and number in it of each quality band.

        Raises
        ------
        RasterError, GridError
            There is no such band, or it cannot be imagery.
        """
        numbers, names, assumed = self._find(stack, quality, vrt=vrt)
        for number in numbers:
            band = stack[number - 1]
            if band.resampled and band.alpha:
                raise GridError(
                    f"band {number}, {band.name}, is marked as alpha, which masks other bands when its file is "
                    "resampled; mark it as grey first (gdal_edit.py -colorinterp_N gray), or warp the file"
                )
        alpha = [AlphaBand(band.path, band.number, place) for place, band in enumerate(stack, 1) if band.alpha]
        masks = tuple(band for band in alpha if band.place not in numbers)
        return BandChoice(numbers, names, masks, tuple(band for band in alpha if assumed and band.place in numbers))

    def lookup_names(self, stack: Sequence[StackedBand]) -> list[str]:
        """Return the names by which the bands of a stack are looked for: given ones, or those of `StackedBand`.

        Raises
        ------
        RasterError
            Not as many names are given as there are bands.
        """
        names = self._names(stack)
        return names if names == [*(self.band_names or ())] else [band.lookup_name for band in stack]

    def _find(
        self, stack: Sequence[StackedBand], quality: Collection[tuple[Path, int]], *, vrt: bool | None
    ) -> tuple[tuple[int, ...], tuple[str, ...], bool]:
        """Return numbers and names of the chosen bands, and whether alpha bands are taken for imagery."""
        names = self._names(stack)
        for known in ([band.lookup_name for band in stack], names) if self.trained else ():
            if (found := match_bands(self.trained or (), known)) is not None:
                return tuple(at + 1 for at in found), tuple(self.trained or ()), False
        if self.bands:
            chosen = tuple(self._number(band, stack) for band in self.bands)
            by_name = [
                isinstance(band, str) and names[at - 1].isdecimal() for band, at in zip(self.bands, chosen, strict=True)
            ]
            return (
                chosen,
                tuple(
                    stack[at - 1].lookup_name if look else names[at - 1]
                    for at, look in zip(chosen, by_name, strict=True)
                ),
                False,
            )
        imagery = [at for at, band in enumerate(stack, 1) if (band.path, band.number) not in quality]
        # A band that the recipe calls "nir" is imagery, whatever it is tagged as.
        spectral = common_names(self.band_names) if self.band_names and names == [*self.band_names] else ()
        chosen = tuple(at for at in imagery if not stack[at - 1].alpha or (spectral and spectral[at - 1] is not None))
        assumed = self.trained is not None and len(chosen) != len(self.trained) == len(imagery)
        if assumed:
            alpha = [stack[at - 1] for at in imagery if stack[at - 1].alpha]
            assumed = all(has_varying_values(band.path, band.number, vrt=vrt) for band in alpha)
        chosen = tuple(imagery) if assumed else chosen
        if not chosen:
            raise RasterError(
                f"{stack[0].path}: holds only bands that are masks (alpha, quality); choose bands to use as imagery"
            )
        return chosen, tuple(names[at - 1] for at in chosen), assumed

    def _names(self, stack: Sequence[StackedBand]) -> list[str]:
        """Return the names of all bands: given ones, or those in the files.

        Raises
        ------
        RasterError
            Not as many names are given as there are bands; a model ignores them then.
        """
        if self.band_names is None or (self.trained is not None and len(self.band_names) != len(stack)):
            return [band.name for band in stack]
        if len(self.band_names) != len(stack):
            raise RasterError(
                f"{_where(stack)}: data.band_names names {len(self.band_names)} bands, there are {len(stack)}; name "
                "all bands, in the order of the files"
            )
        return list(self.band_names)

    def _number(self, band: int | str, stack: Sequence[StackedBand]) -> int:
        """Return the number of a band in the stack.

        Raises
        ------
        RasterError
            There is no such band, or there are several.
        """
        if isinstance(band, int):
            if not 1 <= band <= len(stack):
                raise RasterError(
                    f"{_where(stack)}: band {band} was asked for, there are {len(stack)} (counted from 1); correct the "
                    "bands or the files"
                )
            return band
        names = self.lookup_names(stack)
        found = find_band(band, names)
        if len(found) != 1:
            what = "has no band" if not found else f"has {len(found)} bands that may be called"
            raise RasterError(
                f"{_where(stack)}: {what} {band!r}; its bands are {', '.join(names)}"
                + suggest("give numbers in data.bands", "name the bands in data.band_names")
                + suggest_stack({one.path for one in stack})
            )
        return found[0] + 1


def suggest_stack(files: Collection[Path]) -> str:
    """Return advice, as `suggest` does, for a scene without a band that it should have, if it is a single file."""
    return suggest("add --stack if its bands are in files of their own") if len(files) == 1 else ""


def _where(stack: Sequence[StackedBand]) -> str:
    several = len({str(band.path) for band in stack}) > 1
    return f"{stack[0].path}{' and the files stacked on it' if several else ''}"
