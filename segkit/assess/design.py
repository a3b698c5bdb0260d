"""Draw a stratified random sample of a map and write it for interpretation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from segkit.assess.estimation import sample_size
from segkit.assess.points import LAYERS, POINTS, write_points
from segkit.assess.sampling import Allocation, allocate, draw_sample
from segkit.errors import UsageError
from segkit.io.files import check_distinct
from segkit.io.geopackage import check_target, replace_layers
from segkit.io.grid import Grid
from segkit.io.paths import PathLike
from segkit.maps.class_map import ClassMap, ClassTotal, open_class_map
from segkit.runtime.deprecation import renamed_attribute, renamed_keywords

_DEFAULT_USERS_ACCURACY = 0.9


@dataclass(frozen=True)
class Design:
    """A sample that was drawn.

    Parameters
    ----------
    path
        The GeoPackage of points.
    strata
        Name, pixels and hectares of each stratum.
    samples
        Number of points in each stratum.
    expected_users_accuracy
        Expected user's accuracy of each stratum.
    """

    path: Path
    strata: tuple[ClassTotal, ...]
    samples: tuple[int, ...]
    expected_users_accuracy: tuple[float, ...]

    expected = renamed_attribute("expected", "expected_users_accuracy")

    @property
    def expected_error(self) -> float:
        """Standard error of the overall accuracy, if the expected user's accuracies are right."""
        hectares = np.array([stratum.hectares for stratum in self.strata])
        accuracy, n = np.array(self.expected_users_accuracy), np.array(self.samples)
        variance = (hectares / hectares.sum()) ** 2 * accuracy * (1 - accuracy)
        return float(np.sqrt((variance / np.maximum(n - 1, 1)).sum()))


@renamed_keywords(
    error="target_se",
    minimum="min_per_stratum",
    expected="expected_users_accuracy",
    of="class_name",
    names="class_names",
)
def design(
    map_path: PathLike,
    output: PathLike,
    *,
    samples: int | None = None,
    target_se: float | None = None,
    allocation: Allocation = "proportional",
    min_per_stratum: int = 50,
    expected_users_accuracy: Mapping[str, float] | None = None,
    buffer: tuple[str, float] | None = None,
    class_name: str | None = None,
    class_names: PathLike | None = None,
    seed: int = 0,
    show_map: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Design:
    """Draw a stratified random sample of a map and write it for interpretation.

    The strata are the map's classes, plus a buffer around one of them if requested. Within a stratum every pixel has
    the same probability of being drawn. Points are in random order, so that the order does not reveal the map's class.

    Parameters
    ----------
    map_path
        A map written by segkit, or any other raster of class codes.
    output
        A GeoPackage: the layer ``points`` with the empty column ``ref_class`` and a form for QGIS, the outlines of the
        pixels, and the tables that `estimate_sample` needs.
    samples, target_se
        Total number of points, or the target standard error of the overall accuracy, from which the number is computed
        (Olofsson et al. 2014, equation 13). Give one of the two.
    allocation, min_per_stratum
        Allocation of the points to the strata and minimum of each, see `segkit.assess.allocate`.
    expected_users_accuracy
        {stratum: expected user's accuracy}; 0.9 for strata that are not listed.
    buffer
        Class and metres: pixels of other classes within this distance of the class become a stratum of their own. Most
        omitted deforestation lies along the edges of mapped deforestation.
    class_name
        The class to assess, for multilabel maps only.
    class_names
        A file of class names, as for `segkit.vectorize`.
    seed
        The same seed draws the same points.
    show_map
        Show the map's class to the interpreter. This biases the interpretation towards the map.

    Raises
    ------
    UsageError
        Neither or both of samples and target_se are given, there are too few samples, or the map does not have the
        class or stratum.
    DataError
        The raster is not a map.
    """
    target = check_target(output, LAYERS, "sample points are", overwrite=overwrite)
    check_distinct([target], [map_path, class_names])
    if (samples is None) == (target_se is None):
        raise UsageError("give either the number of points or the target standard error of the overall accuracy")
    with open_class_map(map_path, class_names=class_names, class_name=class_name, buffer=buffer) as source:
        strata = source.stratum_totals()
        given = expected_users_accuracy or {}
        if unknown := [name for name in given if name not in source.strata]:
            raise UsageError(f"{map_path}: has no stratum {unknown[0]!r}; its strata are {', '.join(source.strata)}")
        accuracies = [given.get(name, _DEFAULT_USERS_ACCURACY) for name in source.strata]
        hectares = np.array([stratum.hectares for stratum in strata])
        if target_se is not None:
            samples = sample_size(hectares / hectares.sum(), accuracies, target_se)
        assert samples is not None
        numbers = allocate(
            [stratum.pixels for stratum in strata],
            samples,
            how=allocation,
            min_per_stratum=min_per_stratum,
            shares=hectares,
            accuracies=accuracies,
        ).tolist()
        drawn = draw_sample(source, strata, numbers, seed, show_progress=show_progress)
        sample, strata_table, classes = _tables(source, strata, numbers, drawn)
        _write(target, source.grid, sample, strata_table, classes, show_map=show_map)
    return Design(target, strata, tuple(numbers), tuple(accuracies))


def _tables(
    source: ClassMap, strata: Sequence[ClassTotal], numbers: Sequence[int], drawn: pandas.DataFrame
) -> tuple[pandas.DataFrame, pandas.DataFrame, pandas.DataFrame]:
    """Return the tables of points, strata and classes, as `write_points` takes them."""
    names = np.array([one.name for one in source.class_totals()], dtype=object)
    sample = pandas.DataFrame({"id": np.arange(1, len(drawn) + 1)}).join(drawn)
    sample["stratum"] = np.array(source.strata)[drawn["stratum"]]
    sample["map_class"] = names[drawn["map_class"]]
    map_classes = [source.map_class_of_stratum(index) for index in range(len(strata))]
    strata_table = pandas.DataFrame(
        {
            "stratum": source.strata,
            "map_class": [None if index is None else names[index] for index in map_classes],
            "pixels": [stratum.pixels for stratum in strata],
            "hectares": [stratum.hectares for stratum in strata],
            "samples": numbers,
        }
    )
    areas = source.hectares_by_class()
    return sample, strata_table, pandas.DataFrame({"class": list(areas), "mapped_ha": list(areas.values())})


def _write(
    target: Path,
    grid: Grid,
    sample: pandas.DataFrame,
    strata: pandas.DataFrame,
    classes: pandas.DataFrame,
    *,
    show_map: bool,
) -> None:
    """Write the GeoPackage under a temporary name, read it back and rename it; other layers of the file are kept."""
    with replace_layers(target, LAYERS, {POINTS: len(sample)}) as temporary:
        write_points(temporary, grid, sample, strata, classes, show_map=show_map)
