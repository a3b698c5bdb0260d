"""Areas of a map's classes in zones: districts, parcels, protected areas."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pandas
import shapely
from numpy.typing import NDArray

from segkit.errors import UsageError, suggest
from segkit.io.class_table import Legend
from segkit.io.cover import overlap, window_polygon
from segkit.io.coverage import Coverage
from segkit.io.files import atomic_write, check_distinct, check_output, escape_formula
from segkit.io.grid import Grid, split_window
from segkit.io.paths import PathLike
from segkit.io.pixel_area import pixel_hectares
from segkit.io.polygons import Polygons, project_to_grid, read_polygons, true_hectares
from segkit.io.qml import clean_text
from segkit.io.raster import open_raster
from segkit.maps.class_map import ClassMap, open_class_map
from segkit.maps.probabilities import ClassProbabilities, open_probabilities
from segkit.runtime.progress import progress
from segkit.runtime.tables import list_some

_BLOCK_PX = 1024
_ROUNDING = 1e-6  # of a zone's area: how well the areas of pixels are known
_MAX_LISTED = 5  # zones in a warning
_AREA, _EXPECTED = "{}_ha", "{}_expected_ha"  # columns of a class
_FIXED_COLUMNS = ("zone_ha", "no_data_ha", "outside_map_ha")


@dataclass(frozen=True)
class ZonalAreas:
    """Areas of classes in zones, in hectares on the ground.

    Parameters
    ----------
    by
        The field that names the zones; None if they are numbered.
    zones, classes
        Names.
    hectares
        float64 (zones, classes): mapped area of each class.
    expected_hectares
        float64 (zones, classes): sum over the pixels of area times probability; NaN for classes without probabilities.
        None without probabilities.
    zone_hectares, no_data_hectares, outside_hectares
        float64 (zones,): area of the zone, and its parts without data and outside of the map.
    path
        The table; None if none was written.
    """

    by: str | None
    zones: tuple[str, ...]
    classes: tuple[str, ...]
    hectares: NDArray[np.float64]
    expected_hectares: NDArray[np.float64] | None
    zone_hectares: NDArray[np.float64]
    no_data_hectares: NDArray[np.float64]
    outside_hectares: NDArray[np.float64]
    path: Path | None = None

    def table(self) -> pandas.DataFrame:
        """Return a row for each zone: its name, and hectares as CLASS_ha, CLASS_expected_ha, and of its parts."""
        columns: dict[str, object] = {self.by or "zone": list(self.zones)}
        columns |= {_AREA.format(name): self.hectares[:, at] for at, name in enumerate(self.classes)}
        if self.expected_hectares is not None:
            known = ~np.isnan(self.expected_hectares.sum(axis=0))
            columns |= {
                _EXPECTED.format(name): self.expected_hectares[:, at]
                for at, name in enumerate(self.classes)
                if known[at]
            }
        parts = (self.zone_hectares, self.no_data_hectares, self.outside_hectares)
        return pandas.DataFrame(columns | dict(zip(_FIXED_COLUMNS, parts, strict=True)))


def areas(
    map_path: PathLike,
    zones: PathLike,
    *,
    by: str | None = None,
    layer: str | None = None,
    output: PathLike | None = None,
    probabilities: PathLike | None = None,
    class_names: PathLike | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> ZonalAreas:
    """Return the area of each class in each zone.

    A pixel on the border of a zone counts with the exact fraction of it that the zone covers, and each pixel with its
    true area on the ellipsoid. Zones that overlap are each counted in full.

    Parameters
    ----------
    map_path
        A map: of segkit, or any raster of class values. Of a multilabel map, each class is counted by itself.
    zones
        Vector file of polygons, in any CRS.
    by
        Field that names the zones. Polygons with the same value are one zone, in which ground that several of them
        cover is counted once. By default each polygon is a zone, and they are numbered from 1.
    layer
        Layer of `zones`, if it has several.
    output
        Table to write, .csv or .xlsx.
    probabilities
        Probabilities of the map, as `segkit.predict` writes them, for expected areas: the sum of area times
        probability. They are as good as the probabilities are calibrated, and have no confidence interval;
        `segkit.assess` estimates areas with one.
    class_names
        A file of class names, as for `segkit.vectorize`.

    Raises
    ------
    MissingFileError, DataError, RasterError
        A file is missing or unreadable, the map is not one, or the zones are not polygons or do not have the field.
    GridError
        The map has no CRS for areas, the zones have none, or the probabilities lie on another grid.
    UsageError, OutputExistsError
        The table cannot be written there.
    """
    target = None if output is None else _check_table(output, overwrite=overwrite)
    check_distinct([target], [map_path, zones, probabilities, class_names])
    polygons = read_polygons(str(zones), layer, option="--layer")
    polygons.warn_of_repairs()
    names, polygons = _group(polygons, by)
    with open_raster(map_path) as dataset:
        legend = Legend.from_dataset(dataset, class_names)
    single: list[str | None] = [one.name for one in legend.classes] if legend.multilabel else [None]
    parts = []
    for number, class_name in enumerate(single, 1):
        with ExitStack() as stack:
            opened = open_class_map(map_path, class_names=class_names, class_name=class_name)
            source = stack.enter_context(opened)
            listed = [one.name for one in (legend.classes if legend.multilabel else source.all_classes())]
            _require_distinct_columns(by, listed, expected=probabilities is not None)
            opened_probabilities = None
            if probabilities is not None:
                opened_probabilities = stack.enter_context(
                    open_probabilities(probabilities, source.grid, source.all_classes())
                )
            label = "areas" if len(single) == 1 else f"areas {number}/{len(single)}"
            part = _measure(source, opened_probabilities, names, polygons, by, label, show_progress=show_progress)
            parts.append(part if class_name is None else _only(part, class_name))
    found = parts[0] if len(parts) == 1 else _join(parts)
    _warn(found)
    if target is None:
        return found
    with atomic_write(target) as file:
        _TABLES[target.suffix.lower()](_with_safe_text(found.table()), file)
    return replace(found, path=target)


def _require_distinct_columns(by: str | None, classes: Sequence[str], *, expected: bool) -> None:
    """Raise a UsageError if two columns of the table would have one name."""
    titles = [_AREA.format(name) for name in classes] + [_EXPECTED.format(name) for name in classes] * expected
    title, number = Counter([by or "zone", *titles, *_FIXED_COLUMNS]).most_common(1)[0]
    if number > 1:
        raise UsageError(
            f"two columns of the table would be called {title!r}"
            + suggest("give other names of classes (--class-names)", "name another field (--by)")
        )


def _group(polygons: Polygons, by: str | None) -> tuple[tuple[str, ...], Polygons]:
    """Return names of zones, and one shape for each."""
    if by is None:
        return tuple(str(number) for number in range(1, polygons.shapes.size + 1)), polygons
    values = [f"(no {by})" if value in (None, "") else value for value in polygons.field_values(by)]
    members: dict[str, list[int]] = {}
    for index, value in enumerate(values):
        members.setdefault(str(value), []).append(index)
    shapes = np.empty(len(members), dtype=object)
    for at, indices in enumerate(members.values()):
        several = polygons.shapes[indices]
        shapes[at] = several[0] if len(indices) == 1 else shapely.union_all(_valid(several))
    first = [indices[0] for indices in members.values()]
    return tuple(members), replace(polygons, shapes=shapes, attributes=polygons.attributes.iloc[first])


def _valid(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    return np.asarray(shapely.make_valid(shapes, method="structure", keep_collapsed=False), dtype=object)


def _measure(
    source: ClassMap,
    probabilities: ClassProbabilities | None,
    names: tuple[str, ...],
    polygons: Polygons,
    by: str | None,
    label: str,
    *,
    show_progress: bool,
) -> ZonalAreas:
    """Sum areas over the blocks of a map and the zones that each of them meets."""
    shapes, numbers, _ = project_to_grid(polygons, source.grid)
    coverages = [Coverage(shape) for shape in shapes]
    tree = shapely.STRtree(shapes)
    classes = source.all_classes()
    n_classes = len(classes)
    # The column of each class of the map; the last one is for -1, no data.
    column = np.array([classes.index(one) for one in source.classes] + [n_classes])
    sums = np.zeros((len(names), n_classes + 1))  # the last one: without data
    expected = None if probabilities is None else np.zeros((len(names), n_classes))
    with progress(label, source.grid.height, "rows", show=show_progress) as advance:
        for strip in source.strips():
            for block in split_window(strip.window, _BLOCK_PX):
                near = np.sort(tree.query(window_polygon(block), predicate="intersects"))
                if not near.size:
                    continue
                ground = pixel_hectares(source.grid, block)
                columns = column[strip.classes[overlap(block, strip.window)]]
                values = None if probabilities is None else probabilities.read(block)
                for index in near.tolist():
                    window = coverages[index].part_of(block)
                    if window is None:
                        continue
                    inside = overlap(window, block)
                    weight = coverages[index].fractions(window) * ground[inside]
                    zone, found = numbers[index], columns[inside]
                    sums[zone] += np.bincount(found.ravel(), weight.ravel(), n_classes + 1)
                    if values is not None and expected is not None:
                        known = np.where(found == n_classes, 0, weight)
                        expected[zone] += np.tensordot(values[:, *inside], known, axes=2)
            advance(strip.window.height)
    zone_hectares = true_hectares(polygons)
    return ZonalAreas(
        by,
        names,
        tuple(one.name for one in classes),
        sums[:, :-1],
        expected,
        zone_hectares,
        sums[:, -1],
        _outside(source.grid, shapes, numbers, zone_hectares, sums.sum(axis=1)),
    )


def _outside(
    grid: Grid,
    shapes: NDArray[np.object_],
    numbers: NDArray[np.intp],
    zone_hectares: NDArray[np.float64],
    inside: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the area of each zone outside of the map; exactly 0 if it is within, up to rounding."""
    within: NDArray[np.bool_] = np.zeros(len(zone_hectares), dtype=bool)
    within[numbers] = shapely.covered_by(shapes, window_polygon(grid.full_window))
    outside = zone_hectares - inside
    return np.where(within | (outside <= _ROUNDING * zone_hectares), 0, outside)


def _only(part: ZonalAreas, class_name: str) -> ZonalAreas:
    """Keep the class of a band of a multilabel map."""
    at, expected = [part.classes.index(class_name)], part.expected_hectares
    return replace(
        part,
        classes=(class_name,),
        hectares=part.hectares[:, at],
        expected_hectares=None if expected is None else expected[:, at],
    )


def _join(parts: Sequence[ZonalAreas]) -> ZonalAreas:
    """Put the classes of a multilabel map side by side; no data is what the first band has none at."""
    expected = [part.expected_hectares for part in parts if part.expected_hectares is not None]
    return replace(
        parts[0],
        classes=tuple(name for part in parts for name in part.classes),
        hectares=np.hstack([part.hectares for part in parts]),
        expected_hectares=np.hstack(expected) if expected else None,
    )


def _warn(found: ZonalAreas) -> None:
    """Name the zones that the map does not cover."""
    inside = found.zone_hectares - found.outside_hectares
    for what, which in (
        ("outside of the map", inside <= 0),
        ("partly outside of the map", (inside > 0) & (found.outside_hectares > 0)),
    ):
        names = [found.zones[index] for index in np.flatnonzero(which)]
        if names:
            count = f"{len(names)} of {len(found.zones)} zones"
            warnings.warn(f"{count} are {what}: {list_some(names, _MAX_LISTED)}", stacklevel=3)


def _check_table(output: PathLike, *, overwrite: bool) -> Path:
    """Return the path of a table, if it can be written."""
    target = check_output(output, overwrite=overwrite)
    if target.suffix.lower() not in _TABLES:
        raise UsageError(f"{target}: tables are written as {' and '.join(_TABLES)}; give one of these extensions")
    if target.suffix.lower() == ".xlsx":
        import openpyxl  # noqa: F401 - found missing now, not after the work
    return target


def _with_safe_text(table: pandas.DataFrame) -> pandas.DataFrame:
    """Escape names that a spreadsheet would run as a formula."""
    first = table.columns[0]
    return table.assign(**{first: table[first].map(escape_formula)}).rename(columns=escape_formula)


def _write_csv(table: pandas.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False)


def _write_xlsx(table: pandas.DataFrame, path: Path) -> None:
    zones = table.columns[0]
    clean = table.assign(**{zones: table[zones].map(clean_text)}).rename(columns=clean_text)
    from openpyxl.writer.excel import ExcelWriter

    written = io.BytesIO()
    frame_writer = pandas.ExcelWriter(written, engine="openpyxl")
    clean.to_excel(frame_writer, sheet_name="areas", index=False, freeze_panes=(1, 1))
    # If a full disk stops it, openpyxl would leave an archive open, with a traceback when it is collected.
    with ZipFile(written, "w", ZIP_DEFLATED) as archive:
        ExcelWriter(frame_writer.book, archive).save()
    path.write_bytes(written.getvalue())


_TABLES: dict[str, Callable[[pandas.DataFrame, Path], None]] = {".csv": _write_csv, ".xlsx": _write_xlsx}
