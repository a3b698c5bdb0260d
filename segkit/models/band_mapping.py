"""Map the input bands of pretrained weights to the bands of the imagery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segkit.io.band_names import OTHER_SPELLINGS, SENTINEL_2, WAVELENGTHS, are_same, common_names, normalize_name

# Names whose order is known: by wavelength, or by number among the bands of Landsat.
_SENTINEL_2 = {name: WAVELENGTHS[common] for name, common in SENTINEL_2.items()}
_COMMON_NAMES = {
    name.upper(): WAVELENGTHS[OTHER_SPELLINGS.get(name, name)] for name in (*WAVELENGTHS, *OTHER_SPELLINGS)
}
_LANDSAT = {f"SR_B{number}": number for number in range(1, 8)}  # Collection 2, Level 2; sorted by wavelength in each
_ORDERS: tuple[dict[str, int], ...] = (_SENTINEL_2 | _COMMON_NAMES, _LANDSAT)


@dataclass(frozen=True)
class BandMapping:
    """Which input bands of pretrained weights each band of the imagery starts from.

    Parameters
    ----------
    sources
        For each band of the imagery, indices of the input bands whose mean its weights start from.
    matched
        For each band of the imagery, whether it is the band that its weights were trained for.
    inputs
        Number of input bands of the pretrained weights.
    scale
        Factor of all weights that depend on the bands, which keeps the magnitude of the outputs.
    summary
        What is taken from where, as text.
    """

    sources: tuple[tuple[int, ...], ...]
    matched: tuple[bool, ...]
    inputs: int
    scale: float
    summary: str

    def apply(self, weight: Tensor, axis: int) -> Tensor:
        """Return a weight for the bands of the imagery.

        Parameters
        ----------
        weight
            Its size along `axis` is `inputs`, or a multiple: space-to-depth stems have all bands once per position.
        """
        groups = weight.unflatten(axis, (-1, self.inputs))  # type: ignore[no-untyped-call]
        columns = [groups.index_select(axis + 1, torch.tensor(each)).mean(dim=axis + 1) for each in self.sources]
        mapped = torch.stack(columns, dim=axis + 1).flatten(axis, axis + 1)
        return mapped if self.scale == 1 else mapped * self.scale


def match_names(inputs: Sequence[str], bands: Sequence[str]) -> BandMapping | None:
    """Map input bands to the bands of the imagery by name; None if no band has the name of an input.

    "B04", "b4" and "B4, central wavelength 665 nm" are the same name, and so is "red" if the names tell the sensor. A
    band without its like starts from the mean of the next input bands of shorter and of longer wavelength, if the names
    tell their order (Sentinel-2, Landsat Level 2, common names like "red"), else from its neighbours in the imagery.
    Inputs without their like are not used, as if they were always at their mean. Weights are multiplied by the share of
    bands that have their like.
    """
    places = {normalize_name(name): at for at, name in enumerate(inputs)}
    theirs, ours = common_names(inputs), common_names(bands)
    found = [_find_input(band, common, inputs, theirs) for band, common in zip(bands, ours, strict=True)]
    matched = [at for at in found if at is not None]
    if not matched:
        return None
    sources: list[tuple[int, ...]] = []
    started = []
    for place, (band, at) in enumerate(zip(bands, found, strict=True)):
        sources.append((at,) if at is not None else _find_neighbours(normalize_name(band), place, places, found))
        if at is None:
            started.append(f"{band} from {' and '.join(str(inputs[each]) for each in sources[-1])}")
    parts = [f"{', '.join(band for band, at in zip(bands, found, strict=True) if at is not None)} by name"]
    parts += [f"new: {', '.join(started)}"] if started else []
    unused = [str(name) for at, name in enumerate(inputs) if at not in matched]
    parts += [f"not used: {', '.join(unused)}"] if unused else []
    flags = tuple(at is not None for at in found)
    return BandMapping(tuple(sources), flags, len(inputs), len(matched) / len(bands), "; ".join(parts))


def match_order(inputs: int, bands: Sequence[str]) -> BandMapping:
    """Map input bands to the bands of the imagery by order; additional bands start from the last input band."""
    shared = min(inputs, len(bands))
    sources = tuple((min(place, inputs - 1),) for place in range(len(bands)))
    parts = [f"{', '.join(bands[:shared])} by order"]
    if new := bands[shared:]:
        parts.append(f"new: {', '.join(new)} from {bands[shared - 1]}")
    if inputs > shared:
        parts.append(f"not used: the last {inputs - shared} of {inputs} bands")
    flags = tuple(place < shared for place in range(len(bands)))
    return BandMapping(sources, flags, inputs, shared / len(bands), "; ".join(parts))


def repeat_inputs(inputs: int, bands: Sequence[str]) -> BandMapping:
    """Repeat the input bands over the bands of the imagery; a single band has their sum.

    The rule of segmentation-models-pytorch and timm for weights of red, green and blue.
    """
    number = len(bands)
    if number == inputs:
        return match_order(inputs, bands)
    if number == 1:
        summary = f"{bands[0]} from the sum of {inputs} bands"
        return BandMapping((tuple(range(inputs)),), (False,), inputs, inputs, summary)
    sources, flags = tuple((place % inputs,) for place in range(number)), (False,) * number
    return BandMapping(sources, flags, inputs, inputs / number, f"{inputs} bands repeated over {', '.join(bands)}")


def _find_input(band: str, common: str | None, inputs: Sequence[str], commons: Sequence[str | None]) -> int | None:
    """Return the index of the input that is a band; None if none is, or several are."""
    pairs = enumerate(zip(inputs, commons, strict=True))
    same = [at for at, (name, of_input) in pairs if are_same(band, common, name, of_input)]
    same = [at for at in same if inputs[at] == band] or same
    return same[0] if len(same) == 1 else None


def _find_neighbours(name: str, place: int, inputs: dict[str, int], found: Sequence[int | None]) -> tuple[int, ...]:
    """Return the inputs that a band starts from which is none of them.

    Parameters
    ----------
    name, place
        Of the band in the imagery.
    inputs
        {name: index} of the inputs.
    found
        For each band of the imagery, its input; None if it has none.
    """
    for order in _ORDERS:
        known = sorted((order[each], at) for each, at in inputs.items() if each in order)
        if name in order and known:
            below = [at for value, at in known if value <= order[name]][-1:]
            above = [at for value, at in known if value >= order[name]][:1]
            same = [at for value, at in known if value == order[name]]
            return tuple(same[:1] or below + above)
    before = [at for at in found[:place] if at is not None][-1:]
    after = [at for at in found[place:] if at is not None][:1]
    return tuple(before + after)
