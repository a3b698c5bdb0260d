import logging

import numpy as np
import pytest
from exported import classical
from synthetic import write_raster

from segkit.errors import ModelFileError
from segkit.exporting import quantization
from segkit.exporting.quantization import CalibrationTiles, _Counts, _inner_nodes, _quiet_logging

onnx = pytest.importorskip("onnx")


def a_scene(folder, name, height, width, empty=0):
    pixels = np.random.default_rng(0).integers(1, 999, (3, height, width)).astype(np.uint16)
    pixels[:, :, :empty] = 0
    return write_raster(folder / name, pixels, nodata=0)


def test_every_third_tile_is_held_out_and_none_is_in_both(tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "_TILE_PX", 16)
    scenes = [a_scene(tmp_path, "a.tif", 40, 50, empty=16), a_scene(tmp_path, "b.tif", 10, 16)]
    tiles = CalibrationTiles(classical(tmp_path), scenes, None)
    # Of the first scene 2 x 3 tiles, the two on the left without data; the second one is smaller than a tile.
    places = [(scene.name, window.row_off, window.col_off) for scene, window in (*tiles.calibrating, *tiles.judged)]
    assert sorted(places) == [("a", 0, 16), ("a", 0, 32), ("a", 16, 16), ("a", 16, 32), ("b", 0, 0)]
    assert [(scene.name, window.row_off, window.col_off) for scene, window in tiles.judged] == [("a", 16, 16)]
    assert [tile.valid.shape for tile in tiles.read(tiles.calibrating)] == [(16, 16)] * 3 + [(10, 16)]
    fixed = CalibrationTiles(classical(tmp_path), scenes, 16)
    assert {tile.valid.shape for tile in fixed.read(fixed.calibrating)} == {(16, 16)}


def test_many_tiles_are_chosen_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "_TILE_PX", 4)
    monkeypatch.setattr(quantization, "_MAX_TILES", 6)
    tiles = CalibrationTiles(classical(tmp_path), a_scene(tmp_path, "a.tif", 4, 404), None)
    columns = sorted(window.col_off for _, window in (*tiles.calibrating, *tiles.judged))
    assert columns == [0, 80, 160, 240, 320, 400]


def test_too_few_tiles_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match=r"give 1 tiles of 256 x 256 pixels with data; at least 3 are needed"):
        CalibrationTiles(classical(tmp_path), a_scene(tmp_path, "a.tif", 300, 256), None)


def test_the_nodes_between_convolutions_are_those_of_a_search_by_paths(tmp_path):
    make = onnx.helper.make_node
    kinds = [("Conv", "x", "a"), ("Relu", "a", "b"), ("Conv", "b", "c"), ("Softmax", "x", "s"), ("MaxPool", "c", "d")]
    kinds += [("Conv", "d", "e"), ("Relu", "e", "f"), ("Relu", "a", "g")]
    nodes = [make(kind, [given], [made], name=made) for kind, given, made in kinds]
    nodes.insert(5, make("Add", ["d", "s"], ["h"], name="h"))
    graph = onnx.helper.make_graph([*nodes, make("Conv", ["h"], ["i"], name="i")], "g", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    below = {node.name: [one for one in node.input if one != "x"] for node in graph.node}
    is_conv = {node.name for node in graph.node if node.op_type == "Conv"}

    def ancestors(name):
        return {one for each in below[name] for one in (each, *ancestors(each))}

    expected = {
        name for name in below if ancestors(name) & is_conv and any(name in ancestors(conv) for conv in is_conv)
    }
    assert set(_inner_nodes(tmp_path / "m.onnx")) == expected == {"b", "c", "d", "h"}


def test_agreement_is_counted_for_all_and_for_each_class():
    random = np.random.default_rng(0)
    one, other = random.integers(0, 2, (2, 9, 9))
    valid = random.random((9, 9)) < 0.8
    counts = _Counts(3)
    for rows in (slice(0, 4), slice(4, 9)):
        masks = [(one[rows] == category) & valid[rows] for category in range(3)]
        counts.add(one[rows] == other[rows], masks, valid[rows])
    assert counts.agreement == pytest.approx((one == other)[valid].mean())
    shares = [(one == other)[valid & (one == category)].mean() for category in range(2)]
    assert counts.per_class == [pytest.approx(shares[0]), pytest.approx(shares[1]), None]


def test_logging_is_as_before():
    before = logging.getLogger().level
    with _quiet_logging():
        assert logging.getLogger().level == logging.ERROR
    assert logging.getLogger().level == before
