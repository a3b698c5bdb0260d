"""Propose the keys of a recipe that say how the pixels of scenes are read: bands, quality bands, no data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segkit.data.band_values import describe_rim_values, find_rim_value
from segkit.data.band_warnings import looks_like_imagery
from segkit.io.alpha_bands import has_varying_values
from segkit.io.band_names import normalize_name
from segkit.io.mosaic import Mosaic
from segkit.io.quality_mask import MASK_PRESETS
from segkit.io.scene import Scene

_MAX_BANDS = 20  # masks are looked for among as many


def draft_imagery(scenes: Sequence[Scene]) -> tuple[dict[str, Any], list[str]]:
    """Return keys of `data`, and notes on what was assumed.

    Bands that hold a mask are left out or used as one; alpha bands whose values vary are imagery; 0 in all bands at the
    rim of scenes is no data.
    """
    keys, notes = _bands(scenes[0])
    at_rims = [one for scene in scenes if (one := find_rim_value(scene)) is not None]
    if zeros := [one for one in at_rims if one.value == 0]:
        keys["nodata"] = 0
        notes.append(
            f"0 is no data: it fills all bands at the rim of {len(zeros)} of {len(scenes)} scenes, though the files do "
            "not declare it"
        )
    notes += describe_rim_values([one for one in at_rims if one.value != 0], ())
    return keys, notes


def _bands(scene: Scene) -> tuple[dict[str, Any], list[str]]:
    for preset, rule in MASK_PRESETS.items():
        if any(rule.name and normalize_name(name) == normalize_name(rule.name) for name in scene.band_names):
            return {"mask": preset}, [f"band {rule.name} is a quality band: clouds are not valid (data.mask)"]
    if imagery := [band for band in scene.alpha_masks if looks_like_imagery(band, vrt=scene.vrt)]:
        bands = sorted({*scene.bands, *(band.place for band in imagery)})
        note = f"band {imagery[0].place} is tagged as alpha, but its values vary, so it is imagery"
        return {"bands": bands}, [note]
    path = scene.paths[0]
    if len(scene.paths) > 1 or isinstance(path, Mosaic) or not 3 <= len(scene.bands) <= _MAX_BANDS:
        return {}, []
    masks = [band for band in scene.bands if not has_varying_values(path, band)]
    if not masks or 2 * len(masks) >= len(scene.bands):
        return {}, []
    note = (
        f"band {', '.join(map(str, masks))} is left out: hardly more than two values occur in it, as in a mask; if it "
        "shows clouds, see data.mask (docs/imagery.md)"
    )
    return {"bands": [band for band in scene.bands if band not in masks]}, [note]
