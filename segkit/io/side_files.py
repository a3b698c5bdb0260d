"""Files beside a raster that say to other programs what it holds: `.aux.xml`, `.qml` and `.sld`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from segkit.io.attribute_table import write_aux_xml
from segkit.io.class_table import OUTPUT_TAG, MapClass, classes_from_tags, format_color
from segkit.io.map_style import class_qml, class_sld, number_qml
from segkit.io.pixel_statistics import PixelStatistics
from segkit.io.qml import is_written_by_segkit, may_replace, write_style

_ABSENT_COLOR = format_color(232, 232, 232)


def write_side_files(
    written: Path,
    target: Path,
    tags: Mapping[str, str],
    band_names: Sequence[str],
    scale: float,
    found: PixelStatistics,
) -> None:
    """Write the side files of a raster that `classes_from_tags` knows; of others, none.

    Parameters
    ----------
    written
        The raster under its temporary name; the files are written beside it.
    target
        The final name. A style there is kept if segkit did not write it.
    tags, band_names, scale
        Of the raster.
    found
        Statistics of all its pixels.
    """
    classes = classes_from_tags(str(target), tags)
    if not classes:
        return
    statistics = [found.of_band(band) for band in range(len(band_names))]
    if OUTPUT_TAG in tags:
        of_bands: list[tuple[MapClass, ...]] = [()] * len(band_names)
        background = {one.name for one in classes if one.background}
        band = next((at for at, name in enumerate(band_names) if name not in background), 0)
        shown = statistics[band]
        # A scale maps the bytes to 0 to 1. Other numbers are 0 or more; a few outliers do not stretch their ramp.
        top = 1.0 if scale != 1 or shown is None else min(shown.maximum, shown.mean + 2 * shown.deviation) or 1.0
        style = number_qml(band + 1, 0, top)
        sld = None
    elif tags.get("segkit_type") == "multilabel":
        of_bands = [
            (MapClass(f"not {one.name}", 0, color=_ABSENT_COLOR), MapClass(one.name, 1, color=one.color))
            for one in classes
        ]
        style, sld = class_qml(of_bands[0], {0}), class_sld(target.stem, of_bands[0], {0})
    else:
        of_bands = [classes]
        style, sld = class_qml(classes), class_sld(target.stem, classes)
    counts = [{one.value: int(found.counts[band, one.value]) for one in listed} for band, listed in enumerate(of_bands)]
    write_aux_xml(written.with_name(f"{written.name}.aux.xml"), of_bands, counts, statistics)
    write_style(style, written.with_suffix(".qml"), target.with_suffix(".qml"))
    if sld is not None and may_replace(target.with_suffix(".sld")):
        written.with_suffix(".sld").write_text(sld, encoding="utf-8")


def remove_side_files(target: Path) -> None:
    """Remove what belongs to an older raster of this name: statistics, overviews, a mask, and segkit's own SLD."""
    for ending in (".aux.xml", ".ovr", ".msk"):
        target.with_name(target.name + ending).unlink(missing_ok=True)
    if is_written_by_segkit(style := target.with_suffix(".sld")):
        style.unlink()
