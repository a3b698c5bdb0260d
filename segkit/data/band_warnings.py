"""Warnings about bands: alpha bands that may be imagery, names unlike those of a model, layers, units of indices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from segkit.errors import SegkitError, suggest
from segkit.io.alpha_bands import has_varying_values
from segkit.io.band_choice import AlphaBand
from segkit.io.band_names import match_bands, normalize_name
from segkit.io.derived_bands import DerivedBand
from segkit.io.grid import lattice_windows
from segkit.io.paths import list_files
from segkit.io.raster import open_raster
from segkit.io.scene import Scene

_MAX_MEAN_REFLECTANCE = 2.0  # no scene reflects more than the light it gets, on the mean of some windows
_MAX_8_BIT = 255
# Windows along each side of a scene, and their side in pixels, from which the mean of bands is taken.
_LATTICE, _WINDOW_PX = 4, 64


def describe_alpha_bands(scenes: Sequence[Scene]) -> Iterator[str]:
    """Yield a warning about the bands that mask though their values vary, and one about those read as imagery.

    The fourth band of red, green, blue and near-infrared is often tagged as alpha, which is what GDAL makes of it by
    default. Read as a mask, it hides ground where it is 0, such as water. Damaged files are left to their
    readers.
    """
    varying = [
        (scene, band) for scene in scenes for band in scene.alpha_masks if looks_like_imagery(band, vrt=scene.vrt)
    ]
    if varying:
        scene, band = varying[0]
        bands = sorted({*scene.bands, *(one.place for one in scene.alpha_masks)})
        yield (
            f"{_describe_files([one for _, one in varying])} tagged as alpha and read as a mask, but its values vary "
            "as those of imagery do, so ground is hidden where it is 0"
            + suggest(
                f"if it is imagery, set data.bands: {bands}",
                f"tag it as grey (gdal_edit.py -colorinterp_{band.number} gray FILE)",
            )
        )
    if assumed := [band for scene in scenes for band in scene.alpha_imagery]:
        yield (
            f"{_describe_files(assumed)} tagged as alpha, but its values vary and the model needs it, so it is read as "
            "imagery; if that is wrong, give a scene with the bands of the model"
        )


def describe_unmatched_bands(trained: Sequence[str], scenes: Sequence[Scene]) -> str | None:
    """Return one warning about all scenes whose bands have other names than those of a model; None without any.

    Their bands are read in their order, which may be another one. Scenes whose bands have numbers for names are left
    out, and so are those whose names differ only in what comes from their files.

    Parameters
    ----------
    trained
        Names of the bands of the model.
    """
    wanted = [normalize_name(name) for name in trained]
    if any(name.isdecimal() for name in wanted):
        return None
    unmatched = [
        scene
        for scene in scenes
        if match_bands(trained, scene.band_names) is None
        and (names := [normalize_name(name) for name in scene.band_names]) != wanted
        and not any(name.isdecimal() for name in names)
    ]
    if not unmatched:
        return None
    one, several = unmatched[0], f"{len(unmatched)} scenes, for example " if len(unmatched) > 1 else ""
    return (
        f"{several}{one.paths[0]}: the names of its bands ({', '.join(one.band_names)}) do not tell which of them are "
        f"those of the model ({', '.join(trained)}), so they are read in this order; if it is another one, correct the "
        "names (descriptions) of the bands"
    )


def describe_partial_layers(scenes: Sequence[Scene]) -> Iterator[str]:
    """Yield a warning about each layer that covers only a part of scenes."""
    partial = [(scene, layer) for scene in scenes for layer in scene.layers if layer.covered < 1]
    for name in dict.fromkeys(layer.declared.name for _, layer in partial):
        found = sorted((one for one in partial if one[1].declared.name == name), key=lambda one: one[1].covered)
        scene, layer = found[0]
        several = f"{len(found)} scenes, for example " if len(found) > 1 else ""
        yield (
            f"{layer.declared.path}: the layer {name!r} covers only {int(100 * layer.covered)}% of {several}"
            f"{scene.paths[0]}; the rest is no data"
        )


def describe_index_units(scenes: Sequence[Scene]) -> str | None:
    """Return a warning about indices that need reflectance, if the values of their bands are none; else None.

    Ratios and differences of bands need no reflectance: other units do not change them, or only their scale. A small
    sample of the pixels is read.
    """
    unlike: list[tuple[Scene, tuple[str, ...], float]] = []
    for scene in scenes:
        needing = [band for band in scene.derived if band.declared.needs_reflectance]
        if needing and (mean := _mean_of_inputs(scene, needing)) > _MAX_MEAN_REFLECTANCE:
            unlike.append((scene, tuple(dict.fromkeys(band.declared.name for band in needing)), mean))
    if not unlike:
        return None
    scene, names, mean = unlike[0]
    several = f" of {len(unlike)} scenes, for example" if len(unlike) > 1 else " of"
    return (
        f"{', '.join(names)} {'need' if len(names) > 1 else 'needs'} reflectance (0 to 1), but the mean of the bands"
        f"{several} {scene.paths[0]} is {mean:.4g}: {_advise_units(scene, mean)}"
    )


def _mean_of_inputs(scene: Scene, derived: Sequence[DerivedBand]) -> float:
    """Return the mean of the inputs of computed bands in a sample of the valid pixels; 0 without any."""
    numbers = dict.fromkeys(number for band in derived for _, number in band.inputs)
    inputs = scene.with_bands([(number, str(number)) for number in numbers])
    with inputs.open() as reader:
        tiles = [reader.read(window) for window in lattice_windows(scene.grid, _LATTICE, _WINDOW_PX)]
    values = np.concatenate([tile.pixels[:, tile.valid].ravel() for tile in tiles])
    values = values[np.isfinite(values)]
    return float(values.mean(dtype=np.float64)) if values.size else 0.0


def _advise_units(scene: Scene, mean: float) -> str:
    """Return how to get reflectance from values with this mean."""
    if not scene.scaled and not scene.rules.has_units:
        with open_raster(list_files(scene.paths[0])[0], vrt=scene.vrt) as dataset:
            declared, names = {*dataset.scales} != {1.0}, dataset.descriptions
        if declared:
            return "the files declare scales, so set data.apply_scale_offset: true"
        if any((name or "").upper().startswith("SR_B") for name in names):
            return "for Landsat Collection 2, set data.scale: 0.0000275 and data.offset: -0.2"
        if mean > _MAX_8_BIT:
            return (
                "if they are reflectance x 10000 (Sentinel-2), set data.scale: 0.0001, and data.offset in the new units"
            )
    return "set data.scale (and data.offset) so that value = stored value * scale + offset, or leave these indices out"


def looks_like_imagery(band: AlphaBand, *, vrt: bool) -> bool:
    """Whether the values of an alpha band vary; false if it cannot be read."""
    with suppress(SegkitError):
        return has_varying_values(band.path, band.number, vrt=vrt)
    return False


def _describe_files(bands: Sequence[AlphaBand]) -> str:
    """Return "band 4 of a.tif is", or of how many files with an example."""
    files: list[Path] = list(dict.fromkeys(band.path for band in bands))
    one = bands[0]
    return (
        f"{one.path}: band {one.number} is"
        if len(files) == 1
        else f"{len(files)} files, for example {one.path}: band {one.number} is"
    )
