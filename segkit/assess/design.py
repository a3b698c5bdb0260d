"""Design: a stratified random sample of a map, for somebody to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from segkit.assess.estimation import sample_size
from segkit.assess.points import LAYERS, POINTS, read_table, write_points
from segkit.assess.sampling import Allocation, allocate, draw
from segkit.errors import OutputError, UsageError
from segkit.io.files import check_apart, check_output, staged, writing_to
from segkit.io.geopackage import begin, check_layers, verify
from segkit.io.raster import PathLike
from segkit.maps.class_map import Part, class_map

_EXPECTED = 0.9  # user's accuracy of a stratum of which nothing was said


@dataclass(frozen=True)
class Design:
    """A sample that was drawn.

    Parameters
    ----------
    path
        The GeoPackage of points.
    strata
        Name, pixels and hectares of each.
    samples
        Points of each.
    expected
        The user's accuracy that was expected of each.
    """

    path: Path
    strata: tuple[Part, ...]
    samples: tuple[int, ...]
    expected: tuple[float, ...]

    @property
    def expected_error(self) -> float:
        """The standard error of the overall accuracy if the expectations are right."""
        hectares = np.array([part.hectares for part in self.strata])
        right, number = np.array(self.expected), np.array(self.samples)
        variance = (hectares / hectares.sum()) ** 2 * right * (1 - right)
        return float(np.sqrt((variance / np.maximum(number - 1, 1)).sum()))


def design(
    map_path: PathLike,
    output: PathLike,
    *,
    samples: int | None = None,
    error: float | None = None,
    allocation: Allocation = "proportional",
    minimum: int = 50,
    expected: Mapping[str, float] | None = None,
    buffer: tuple[str, float] | None = None,
    of: str | None = None,
    names: PathLike | None = None,
    seed: int = 0,
    show_map: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Design:
    """Draw a stratified random sample of a map and write it for an interpreter to fill.

    The strata are the map's classes, and a buffer around one of them if wanted. Within a stratum every pixel has the
    same chance. Points are in random order and tell nothing of the map.

    Parameters
    ----------
    map_path
        A map, by segkit or any other raster of class codes.
    output
        A GeoPackage: the layer ``points`` with the blank column ``ref_class`` and a form for QGIS, the pixels'
        outlines, and the tables that `estimate_sample` needs.
    samples, error
        How many points in all; or the standard error that the overall accuracy shall have, from which the number
        follows (Olofsson et al. 2014, equation 13). One of them.
    allocation, minimum
        How they are divided among the strata, see `segkit.assess.allocate`.
    expected
        {stratum: the user's accuracy expected of it}; 0.9 where nothing is said.
    buffer
        Class and metres: pixels of other classes that near to it are a stratum of their own, so that what the map
        missed along its edges, where deforestation usually is missed, is found.
    of
        The class to assess, where classes overlap.
    names
        A file of class names, as for `segkit.vectorize`.
    seed
        The same one draws the same points.
    show_map
        Whether the interpreter sees the map's class, which invites to agree with it.

    Raises
    ------
    UsageError
        Neither or both of samples and error, too few samples, a class or stratum that the map does not have.
    DataError
        The raster is no map.
    """
    target = check_output(output, overwrite=overwrite)
    if target.suffix.lower() != ".gpkg":
        raise UsageError(f"{target}: points are written as a GeoPackage; name a file that ends in .gpkg")
    check_layers(target, LAYERS)
    check_apart([target], [map_path, names])
    if (samples is None) == (error is None):
        raise UsageError("say either how many samples, or the standard error of the overall accuracy")
    with class_map(map_path, names=names, of=of, buffer=buffer) as source:
        strata = source.stratum_parts()
        if strange := [name for name in expected or {} if name not in source.strata]:
            raise UsageError(f"{map_path}: has no stratum {strange[0]!r}; it has {', '.join(source.strata)}")
        right = [(expected or {}).get(name, _EXPECTED) for name in source.strata]
        hectares = np.array([part.hectares for part in strata])
        if error is not None:
            samples = sample_size(hectares / hectares.sum(), right, error)
        assert samples is not None
        numbers = allocate(
            [part.pixels for part in strata],
            samples,
            how=allocation,
            minimum=minimum,
            shares=hectares,
            accuracies=right,
        ).tolist()
        drawn = draw(source, strata, numbers, seed, show_progress=show_progress)
        shown = [source.shown(at) for at in range(len(strata))]
        areas = source.named()
        classes = pandas.DataFrame({"class": list(areas), "mapped_ha": list(areas.values())})
        named = np.array([part.name for part in source.parts()], dtype=object)
        sample = pandas.DataFrame({"id": np.arange(1, len(drawn) + 1)}).join(drawn)
        sample["stratum"] = np.array(source.strata)[drawn["stratum"]]
        sample["map_class"] = named[drawn["map_class"]]
        table = pandas.DataFrame(
            {
                "stratum": source.strata,
                "map_class": [None if at is None else named[at] for at in shown],
                "pixels": [part.pixels for part in strata],
                "hectares": hectares,
                "samples": numbers,
            }
        )
        with staged(target) as part, writing_to(target, RuntimeError):  # pyogrio errors
            kept = begin(target, part, LAYERS)
            write_points(part, source.grid, sample, table, classes, show_map=show_map)
            written = read_table(part, POINTS)
            if written is None or len(written) != len(sample):
                raise OutputError(f"{target}: what was written does not read back")
            verify(part, LAYERS, kept)
    return Design(target, strata, tuple(numbers), tuple(right))
