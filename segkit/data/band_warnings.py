"""Warnings about bands: alpha bands that may be imagery, and names that differ from those of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from segkit.errors import SegkitError, suggest
from segkit.io.alpha_bands import has_varying_values
from segkit.io.band_choice import AlphaBand
from segkit.io.band_names import match_bands, normalize_name
from segkit.io.scene import Scene


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
