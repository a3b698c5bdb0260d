"""Legend: which classes a map holds, as its own metadata says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from segkit.errors import DataError, UsageError
from segkit.vector.runs import NO_DATA


@dataclass(frozen=True)
class MapClass:
    """A class of a map: its name, its value, and whether it is what remains beside all others."""

    name: str
    value: int
    background: bool = False


@dataclass(frozen=True)
class Legend:
    """The classes that a map lists, in its order; none for a map that segkit did not make.

    Parameters
    ----------
    map_name
        For messages.
    classes
        Of a multilabel map, those of its bands.
    multilabel
        Whether classes overlap: one 0/1 band per class instead of one band of values.
    """

    map_name: str
    classes: tuple[MapClass, ...]
    multilabel: bool

    @classmethod
    def of(cls, dataset: DatasetReader) -> Legend:
        """Read the legend of an open map.

        Raises
        ------
        DataError
            The raster is no map: not of whole numbers, of several bands without being multilabel, or its list of
            classes cannot be read.
        """
        for band, dtype in zip(dataset.indexes, dataset.dtypes, strict=True):
            if np.dtype(dtype).kind not in "iu":
                raise DataError(
                    f"{dataset.name}: band {band} is {dtype}; a map holds class codes, which are whole numbers: "
                    "name the map and not its probabilities, or convert it (gdal_translate -ot Byte)"
                )
        tags = dataset.tags()
        multilabel = tags.get("segkit_type") == "multilabel"
        classes = _listed(dataset.name, tags["segkit_classes"]) if "segkit_classes" in tags else ()
        if multilabel and len(classes) != dataset.count:
            raise DataError(
                f"{dataset.name}: is a multilabel map of {dataset.count} bands but lists {len(classes)} classes; "
                "such a map has one band per class: predict it again"
            )
        if dataset.count > 1 and not multilabel:
            raise DataError(
                f"{dataset.name}: has {dataset.count} bands; a map has one band of class codes, or is marked as "
                "multilabel by segkit: pick a band (gdal_translate -b 1)"
            )
        return cls(dataset.name, classes, multilabel)

    def in_band(self, band: int, codes: NDArray[np.int32]) -> dict[int, MapClass]:
        """Name the classes of a band by their code; `codes` are those found in it.

        A code that is not listed is called by its number, and 0 is background where nothing is listed.
        """
        if self.multilabel:
            return {1: self.classes[band - 1]}
        table = {one.value: one for one in self.classes}
        for code in codes[codes != NO_DATA].tolist():
            table.setdefault(code, MapClass(str(code), code, background=code == 0 and not self.classes))
        return table

    def select(
        self, table: dict[int, MapClass], wanted: Sequence[str | int] | None, *, background: bool
    ) -> dict[int, MapClass]:
        """Keep the classes of a table whose name or value is wanted: by default all but background.

        Raises
        ------
        UsageError
            The map has no such class.
        """
        if wanted is None:
            return {code: one for code, one in table.items() if background or not one.background}
        names = {str(one) for one in wanted}
        known = dict.fromkeys((*self.classes, *table.values()))
        if unknown := names - {alias for one in known for alias in (one.name, str(one.value))}:
            raise UsageError(
                f"{self.map_name} has no class {', '.join(sorted(unknown))}; it has "
                + ", ".join(one.name if one.name == str(one.value) else f"{one.name} ({one.value})" for one in known)
            )
        return {
            code: one
            for code, one in table.items()
            if names & {one.name, str(one.value)} or (background and one.background)
        }


def _listed(map_name: str, text: str) -> tuple[MapClass, ...]:
    try:
        rows = json.loads(text)
        return tuple(MapClass(str(row["name"]), int(row["value"]), bool(row.get("background"))) for row in rows)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{map_name}: its tag segkit_classes is no list of classes with name and value ({error!r}); "
            "remove the tag (gdal_edit.py -unsetmd) or predict the map again"
        ) from error
