"""Propose the task of polygons and points: which field is the class, and which values it has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from segkit.data.drafting.label_draft import MAX_CLASSES, LabelDraft, class_rows, is_background, is_unlabelled
from segkit.data.labels.features import read_label_features
from segkit.errors import LabelError
from segkit.io.csv_table import read_csv
from segkit.io.features import Features
from segkit.io.grid import Grid
from segkit.io.placement import describe_elsewhere
from segkit.io.points import PointColumns, Points, draw_points, find_coordinate_columns, is_point_table
from segkit.io.polygons import Polygons, project_to_grid
from segkit.io.vector import layer_names
from segkit.recipe.label_source import LabelSource

_CLASS_NAMES = re.compile(
    r"class|klass|label|land.?(cover|use)|lulc|cover|type|categ|species|crop|kind|name|code", re.IGNORECASE
)
_OTHER_NAMES = re.compile(
    r"date|year|time|area|^id$|fid|index|source|author|user|comment|note|descr|shape_|split|train|fold", re.IGNORECASE
)
# Shares of the polygons' area: overlaps between these come from drawing, below from rounding.
_MIN_OVERLAP, _MAX_OVERLAP = 1e-6, 0.02


@dataclass(frozen=True)
class _Field:
    """A field that may hold the class, and its values as text."""

    name: str
    values: tuple[str | None, ...]
    is_text: bool

    @property
    def distinct(self) -> set[str]:
        return {value for value in self.values if value is not None}

    @property
    def score(self) -> tuple[int, int, int, int]:
        """How much this looks like the class: the name, text, few empty values, few values."""
        named = bool(_CLASS_NAMES.search(self.name)) - 2 * bool(_OTHER_NAMES.search(self.name))
        return named, int(self.is_text), -self.values.count(None), -len(self.distinct)


def vector_options(paths: Sequence[Path], grid: Grid) -> dict[str, Any]:
    """Return the keys that vector files need to be read: a layer, the CRS of a table of points."""
    options: dict[str, Any] = {}
    path = paths[0]
    if is_point_table(path):
        table = read_csv(path, "table of points")
        x, y = find_coordinate_columns(table, PointColumns())
        rows = [row for row in table.rows if row.cells[x] or row.cells[y]]
        numbers = [(abs(row.number(x, "a number")), abs(row.number(y, "a number"))) for row in rows]
        degrees = x.lower().startswith("lon") or all(one <= 180 and other <= 90 for one, other in numbers)
        options["crs"] = "EPSG:4326" if degrees or grid.crs is None else grid.crs.to_string()
    elif len(spatial := [name for name, has in layer_names(path).items() if has]) > 1:
        options["layer"] = spatial[0]
    return options


def draft_features(paths: Sequence[Path], grids: Sequence[Grid], field: str | None) -> LabelDraft:
    """Return the task that fits the polygons or points of vector files.

    Parameters
    ----------
    grids
        Of the scenes.
    field
        The field that holds the class; by default one whose values repeat.

    Raises
    ------
    LabelError
        The field does not exist or has too many values, or there is nothing to tell apart.
    """
    options = vector_options(paths, grids[0])
    layers = [read_label_features(path, LabelSource.model_validate({"path": str(path), **options})) for path in paths]
    _require_on_scenes(layers, grids)
    what = "points" if isinstance(layers[0], Points) else "polygons"
    notes = [f"{key} is {value}" for key, value in options.items()]
    chosen = _choose_field(layers, field)
    if chosen is None or (field is None and len({v for v in chosen.distinct if not is_unlabelled(v)}) < 2):
        return _single_class(layers, options, notes, what, chosen)
    on_scenes = np.concatenate([_is_on_scenes(layer, grids) for layer in layers])
    counts = Counter(
        value
        for value, here in zip(chosen.values, on_scenes, strict=True)
        if here and value is not None and not is_unlabelled(value)
    )
    if len(counts) > MAX_CLASSES:
        raise LabelError(
            f"{layers[0].path}: field {chosen.name!r} has {len(counts)} values, too many for classes; name another one "
            f"with --field (fields: {', '.join(map(str, layers[0].attributes))})"
        )
    why = "given" if field else f"its values repeat: {len(counts)} values of {len(chosen.values)} {what}"
    notes.append(f"the class is in the field {chosen.name!r} ({why})")
    rare = sorted(value for value, number in counts.items() if number == 1)
    if rare and len(counts) - len(rare) >= 2:
        notes.append(
            f"values of a single one of the {what} are left unlabelled, since they cannot both train and validate: "
            f"{', '.join(rare)}; name their class in labels.values to use them"
        )
    else:
        rare = []
    return _several_classes(layers, options, notes, what, chosen, counts, rare)


def _is_on_scenes(layer: Polygons | Points, grids: Sequence[Grid]) -> NDArray[np.bool_]:
    """Return which features lie on one of the scenes."""
    found = np.zeros(len(layer.shapes), dtype=bool)
    for grid in grids:
        if isinstance(layer, Points):
            numbers = draw_points(layer, grid)[1]
        else:
            shapes, numbers, _ = project_to_grid(layer, grid)
            numbers = numbers[shapely.intersects(shapes, shapely.box(0, 0, grid.width, grid.height))]
        found[numbers] = True
    return found


def _require_on_scenes(layers: Sequence[Polygons | Points], grids: Sequence[Grid]) -> None:
    """Raise a LabelError if no feature lies on a scene."""
    if not any(_is_on_scenes(layer, grids).any() for layer in layers):
        raise LabelError(f"no label covers a scene: {describe_elsewhere(layers[0], grids[0])}")


def _choose_field(layers: Sequence[Features], field: str | None) -> _Field | None:
    """Return the field with the class; None if the values of none repeat."""
    fields = [str(name) for name in layers[0].attributes]
    if field is not None:
        if field not in fields:
            raise LabelError(f"{layers[0].path}: has no field {field!r}; its fields are {', '.join(fields) or 'none'}")
        fields = [field]
    candidates = []
    for name in fields:
        if not all(name in layer.attributes for layer in layers):
            continue
        columns = [layer.attributes[name].to_numpy() for layer in layers]
        values = tuple(value for layer in layers for value in layer.field_values(name))
        numbers = all(column.dtype.kind in "iufb" for column in columns)
        one = _Field(name, values, not numbers)
        whole = all(re.fullmatch(r"-?\d+", value) for value in one.distinct)
        repeats = 1 <= len(one.distinct) <= max(1, len(values) // 2)
        if field is not None or (repeats and (one.is_text or whole)):
            candidates.append(one)
    candidates = [one for one in candidates if len(one.distinct) > 1] or candidates
    return max(candidates, key=lambda one: one.score, default=None)


def _single_class(
    layers: Sequence[Polygons | Points], options: dict[str, Any], notes: list[str], what: str, chosen: _Field | None
) -> LabelDraft:
    if what == "points":
        raise LabelError(
            f"{layers[0].path}: no field of the points has values that repeat, so they have no classes; name the field "
            "with --field"
        )
    name = next(iter(chosen.distinct)) if chosen is not None and len(chosen.distinct) == 1 else layers[0].path.stem
    number = sum(len(layer.shapes) for layer in layers)
    why = f"all {number} polygons have {chosen.name} {name!r}" if chosen else "no field of the polygons has classes"
    notes.append(
        "pixels outside the polygons are background; if somebody looked everywhere, say so (outside_polygons: "
        "background); if only in some areas, see docs/labels.md, annotated areas; if nowhere, draw polygons of other "
        "land, too, and set outside_polygons: ignore"
    )
    task = {"type": "binary", "classes": class_rows([name], [1])}
    # outside_polygons is left open, so that `check` warns if most of the scene is background by default.
    return LabelDraft(task, options, why, tuple(notes), {name: f"{number} polygons"}, unit="block")


def _several_classes(
    layers: Sequence[Polygons | Points], options: dict[str, Any], notes: list[str], what: str, chosen: _Field,
    counts: Counter[str], rare: Sequence[str],
) -> LabelDraft:  # fmt: skip
    backgrounds = [value for value in counts if is_background(value)]
    used = [value for value in counts if value not in {*rare, *backgrounds}]
    if not used or (len(used) == 1 and not backgrounds):
        raise LabelError(
            f"{layers[0].path}: field {chosen.name!r} has the value{'s' * (len(counts) > 1)} {', '.join(counts)}; two "
            "classes are needed"
        )
    values = _class_values(layers, chosen, used)
    used.sort(key=values.__getitem__)
    names = used if chosen.is_text else [f"class_{value}" for value in used]
    nulls = sorted({value or "" for value in chosen.values} - {*used, *backgrounds})
    labels: dict[str, Any] = options | {"field": chosen.name}
    if nulls or backgrounds or not chosen.is_text:
        table: dict[str, str | None] = dict(zip(used, names, strict=True))
        labels["values"] = table | dict.fromkeys(backgrounds, "background") | dict.fromkeys(nulls)
    overlap = _overlap_share(layers, chosen) if what == "polygons" else 0.0
    task: dict[str, Any] = {"type": "binary" if len(used) == 1 else "multiclass"}
    reason = f"each of the {what} has one of {len(used)} classes"
    if overlap > _MAX_OVERLAP and len(used) > 1:
        task["type"] = "multilabel"
        reason = f"polygons of different classes overlap in {overlap:.0%} of their area, so a pixel can have several"
        notes.append("pixels outside the polygons have none of the classes; if nobody looked: outside_polygons: ignore")
    elif not backgrounds:
        task["background"] = False
    if task["type"] != "multilabel" and what == "polygons":
        labels["outside_polygons"] = "ignore"
        notes.append("pixels outside the polygons are unlabelled, since the polygons have several classes")
        if overlap > _MIN_OVERLAP:
            labels["priority"] = [name for _, name in sorted(zip(_areas(layers, chosen, used), names, strict=True))]
            notes.append("where polygons of different classes overlap slightly, the smaller class counts (priority)")
    task["classes"] = class_rows(names, [values[value] for value in used])
    unit: Any = "point" if what == "points" else "polygon" if task["type"] != "multilabel" else "block"
    of_class = {name: f"{counts[value]} {what}" for name, value in zip(names, used, strict=True)}
    return LabelDraft(task, labels, reason, tuple(notes), of_class, unit=unit)


def _class_values(layers: Sequence[Features], chosen: _Field, used: Sequence[str]) -> dict[str, int]:
    """Return the map value of each class: its number, or that of another field with one for each class; else 1 to k."""
    if not chosen.is_text:
        candidates = [list(chosen.values)]
    else:
        names = [str(name) for name in layers[0].attributes if all(name in layer.attributes for layer in layers)]
        candidates = [[value for layer in layers for value in layer.field_values(name)] for name in names]
    for numbers in candidates:
        pairs: dict[str, set[str | None]] = {value: set() for value in used}
        for value, number in zip(chosen.values, numbers, strict=True):
            if value in pairs:
                pairs[value].add(number)
        found = {value: next(iter(each)) or "" for value, each in pairs.items() if len(each) == 1}
        if len({*found.values()}) == len(used) and all(re.fullmatch("[1-9][0-9]{0,2}", one) for one in found.values()):
            values = {value: int(number) for value, number in found.items()}
            if max(values.values()) < 255:
                return values
    return {value: number for number, value in enumerate(sorted(used), 1)}


def _areas(layers: Sequence[Features], chosen: _Field, used: Sequence[str]) -> list[float]:
    shapes = np.concatenate([layer.shapes for layer in layers])
    values = np.array(chosen.values, dtype=object)
    return [float(shapely.area(shapes[values == value]).sum()) for value in used]


def _overlap_share(layers: Sequence[Features], chosen: _Field) -> float:
    """Return the area in polygons of different classes, relative to that of all polygons."""
    common = total = 0.0
    first = 0
    for layer in layers:
        shapes = shapely.make_valid(layer.shapes)
        values = chosen.values[first : first + len(shapes)]
        first += len(shapes)
        total += float(shapely.area(shapes).sum())
        pairs = shapely.STRtree(shapes).query(shapes, predicate="intersects").T
        pairs = np.array([(a, b) for a, b in pairs.tolist() if a < b and values[a] != values[b]], dtype=int)
        pairs = pairs.reshape(-1, 2)
        common += float(shapely.area(shapely.intersection(shapes[pairs[:, 0]], shapes[pairs[:, 1]])).sum())
    return common / total if total else 0.0
