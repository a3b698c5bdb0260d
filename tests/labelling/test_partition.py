"""What polygons in a window say, compared with the pixels of a raster of the same window."""

import numpy as np
import pytest
import shapely
from shapely import box

from segkit.labelling.kappa import AgreementTally, cohen_kappa
from segkit.labelling.partition import disagreement, partition, union
from segkit.task import LandCoverClass, Task

WINDOW = box(0, 0, 20, 20)


def task(kind, **options):
    names = ("water",) if kind == "binary" else ("water", "forest")
    return Task(kind, tuple(LandCoverClass(name, value) for value, name in enumerate(names, 1)), **options)


def said(kind, *polygons, **options):
    names, shapes = zip(*polygons, strict=True) if polygons else ((), ())
    return partition(WINDOW, np.array(names, dtype=object), np.array(shapes, dtype=object), task(kind, **options), 1.0)


@pytest.mark.parametrize(
    "one", [task("binary"), Task("multilabel", (LandCoverClass("water", 1),))], ids=["binary", "one overlapping class"]
)
def test_what_no_polygon_covers_is_background(one):
    found = partition(WINDOW, np.array(["water"], dtype=object), np.array([box(-5, 0, 5, 20)]), one, 1.0)
    assert found.labelled.equals(WINDOW)
    assert found.present["water"].equals(box(0, 0, 5, 20))
    assert found.absent().equals(box(5, 0, 20, 20))
    assert (found.overlaps, found.gaps, found.slivers, found.empty) == (0, 0, 0, False)
    assert said("binary").empty
    assert said("binary").absent().equals(WINDOW)


def test_gaps_are_unlabelled_if_every_pixel_is_in_a_class():
    found = said("multiclass", ("water", box(0, 0, 8, 20)), ("forest", box(10, 0, 20, 20)), background=False)
    assert found.gaps == pytest.approx(40)
    assert found.labelled.area == pytest.approx(360)


def test_overlaps_are_unlabelled_unless_classes_may_overlap():
    drawn = ("water", box(0, 0, 12, 20)), ("forest", box(10, 0, 20, 20))
    found = said("multiclass", *drawn)
    assert found.overlaps == pytest.approx(40)
    assert found.labelled.equals(shapely.difference(WINDOW, box(10, 0, 12, 20)))
    assert found.present["water"].equals(box(0, 0, 10, 20))
    overlapping = said("multilabel", *drawn)
    assert overlapping.overlaps == 0
    assert overlapping.labelled.equals(WINDOW)
    assert overlapping.present["water"].intersection(overlapping.present["forest"]).area == pytest.approx(40)


def test_slivers_of_inexact_drawing_are_no_background():
    found = said("multiclass", ("water", box(0, 0, 9.8, 20)), ("forest", box(10, 0, 20, 20)))
    assert found.slivers == pytest.approx(4)
    assert found.absent().area == pytest.approx(0, abs=1e-9)
    narrow = said("multiclass", ("water", box(0, 0, 10.2, 20)), ("forest", box(10, 0, 20, 20)))
    assert (narrow.overlaps, narrow.slivers) == (0, pytest.approx(4))


def test_a_true_strip_of_one_pixel_is_background():
    found = said("multiclass", ("water", box(0, 0, 9, 20)), ("forest", box(10, 0, 20, 20)))
    assert found.slivers == 0
    assert found.absent().equals(box(9, 0, 10, 20))


def test_unlabelled_polygons_come_before_all_others():
    found = said("binary", ("water", box(0, 0, 10, 20)), ("unlabelled", box(5, 0, 15, 20)))
    assert found.labelled.area == pytest.approx(200)
    assert found.present["water"].equals(box(0, 0, 5, 20))


def test_explicit_background_is_a_class_that_excludes_others():
    found = said("binary", ("water", box(0, 0, 10, 20)), ("background", box(8, 0, 20, 20)))
    assert found.overlaps == pytest.approx(40)
    assert found.absent().equals(box(10, 0, 20, 20))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_files_differ_where_pixels_differ(kind):
    """Random squares of two labellers, against arrays of their cells; kappa against the usual formula of counts."""
    random = np.random.default_rng(2)
    names = [one.name for one in task(kind).classes]
    cells = np.zeros((2, len(names), 20, 20), dtype=bool)
    parts = []
    for labeller in range(2):
        drawn = []
        for _ in range(12):
            place = random.integers(0, 18, 2)
            number = int(random.integers(len(names)))
            square = np.zeros((20, 20), dtype=bool)
            square[place[0] : place[0] + 4, place[1] : place[1] + 4] = True
            if kind != "multilabel" and (cells[labeller].any(axis=0) & square).any():
                continue
            cells[labeller, number] |= square
            drawn.append((names[number], box(place[1], place[0], min(place[1] + 4, 20), min(place[0] + 4, 20))))
        parts.append(said(kind, *drawn))
    for labeller, part in enumerate(parts):
        assert [part.present[name].area for name in names] == pytest.approx(cells[labeller].sum(axis=(1, 2)))
    differing = (cells[0] != cells[1]).any(axis=0)
    assert disagreement(*parts).area == pytest.approx(differing.sum())
    tally = AgreementTally("a", "b")
    tally.add(*parts, 2.0)
    found = tally.result()
    assert (found.area, found.differing) == (pytest.approx(800), pytest.approx(2 * differing.sum()))
    for number, name in enumerate(names):
        one, other = cells[0, number], cells[1, number]
        observed = (one == other).mean()
        chance = one.mean() * other.mean() + (~one).mean() * (~other).mean()
        assert found.kappa[name] == pytest.approx((observed - chance) / (1 - chance))


def test_kappa_is_unknown_without_variety():
    assert np.isnan(cohen_kappa(np.array([[5.0, 0], [0, 0]])))
    assert cohen_kappa(np.array([[45.0, 15], [25, 15]])) == pytest.approx(0.1304, abs=1e-4)  # Cohen 1960's form
    assert union([]).is_empty
