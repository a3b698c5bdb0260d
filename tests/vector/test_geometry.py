"""Polygons as shapely objects and as well-known binary, one by one, put together, and dissolved."""

from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import PATTERNS, labels, maps, options, same_polygons, traced

from segkit.errors import OutputError
from segkit.io.class_table import MapClass
from segkit.vector import geometry
from segkit.vector.batch import Batch
from segkit.vector.geometry import concatenate_polygons, sort_by_class, to_shapely, to_wkb


def batch(codes, **how):
    polygons, own = traced(codes, **how)
    kinds = {
        kind: MapClass(f"class {code}", code)
        for kind, code in zip(polygons.class_index.tolist(), own.tolist(), strict=True)
    }
    return Batch(polygons, [kinds.get(kind) for kind in range(max(kinds, default=-1) + 1)]), own


@settings(max_examples=80)
@given(maps())
def test_binary_is_what_shapely_writes(codes):
    polygons, _ = traced(codes)
    assert to_wkb(polygons).to_pylist() == shapely.to_wkb(to_shapely(polygons), byte_order=1).tolist()


@settings(max_examples=60)
@given(maps(), st.sampled_from(options()))
def test_dissolved_each_class_is_one_valid_multipolygon(codes, how):
    whole, own = batch(codes, **how)
    rows = whole.dissolve()
    assert [row.attribute_columns(confidence=False)["class_id"].tolist() for row in rows] == [
        [code] for code in np.unique(own)
    ]
    for row, code in zip(rows, np.unique(own), strict=True):
        mine = whole.polygons.pixels[own == code]
        columns = row.attribute_columns(confidence=True)
        assert columns["pixels"].tolist() == [mine.sum()]
        [shape] = row.geometries()
        assert shape.geom_type == "MultiPolygon"
        assert shape.is_valid
        assert len(shape.geoms) == len(mine)
        parts = to_shapely(whole.polygons)[own == code]
        assert [part.wkb for part in shape.geoms] == [part.wkb for part in parts]
        table = row.to_arrow(confidence=False)
        assert shapely.from_wkb(table["geometry"].to_pylist())[0].equals_exact(shape)
        assert table["class"].to_pylist() == [f"class {code}"]
        assert len(row) == 1


@settings(max_examples=60)
@given(maps(), st.lists(st.integers(0, 40), max_size=3))
def test_parts_put_together_are_the_whole(codes, cuts):
    polygons, own = traced(codes)
    ends = [0, *sorted(min(cut, len(own)) for cut in cuts), len(own)]
    parts = [polygons.take(start, end) for start, end in pairwise(ends)]
    assert same_polygons((concatenate_polygons(parts), own), (polygons, own))


def test_sorted_by_kind_keeps_the_order_of_each():
    polygons, _ = traced(np.random.default_rng(0).integers(0, 3, (12, 12), dtype=np.uint8))
    moved = sort_by_class(polygons)
    order = np.argsort(polygons.class_index, kind="stable")
    assert [one.wkb for one in to_shapely(moved)] == [one.wkb for one in to_shapely(polygons)[order]]
    np.testing.assert_array_equal(moved.pixels, polygons.pixels[order])


def test_what_is_larger_than_a_format_holds_is_refused(monkeypatch):
    polygons, _ = traced(PATTERNS["checkerboard"])
    size = sum(map(len, to_wkb(polygons).to_pylist()))
    monkeypatch.setattr(geometry, "_MAX_WKB_BYTES", size - 1)
    with pytest.raises(OutputError, match=r"42 polygons take .* GB at once"):
        to_wkb(polygons)


def test_batches_say_what_each_class_has():
    codes = PATTERNS["islands in holes in islands"]
    whole, own = batch(codes)
    found = {name: (count, area) for name, count, area in whole.totals_by_class()}
    assert {name: count for name, (count, _) in found.items()} == {"class 0": 3, "class 1": 2}
    assert len(own) == labels(codes).max() + 1
