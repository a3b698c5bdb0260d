"""What is said of scenes that could not be mapped, or not all of; and what their maps then hold."""

import json
from unittest import mock

import numpy as np
import pytest
import rasterio
from broken_blocks import break_block, lost_pixels, write_blocks
from exported import write_graph
from faults import call
from predicting import FAST, Neighbours, read
from synthetic import segmenter

from segkit.errors import OutputExistsError, ScenesError, UnreadableError, UsageError
from segkit.inference import tasks
from segkit.inference import tiling as plan
from segkit.inference.predict import predict
from segkit.io.mosaic import Mosaic

SHAPE = 70, 60
RADIUS = 2  # of the receptive field of Neighbours
LOST = (2, 1), (3, 3), (0, 0)
OUTPUTS = {"probabilities": "p.tif"}


@pytest.fixture(autouse=True)
def several_bands(monkeypatch):
    monkeypatch.setattr(plan, "_MIN_BAND_PIXELS", 1)


@pytest.fixture
def scene(tmp_path):
    random = np.random.default_rng(0)
    return write_blocks(tmp_path / "scene.tif", random.integers(1, 1000, (2, *SHAPE)).astype(np.uint16))


def mapped(scene, folder, model=None, **options):
    """Map a scene into a folder; return the summary, and the rasters with -1 for no data."""
    folder.mkdir(exist_ok=True)
    outputs = {key: folder / name for key, name in OUTPUTS.items()}
    [summary] = predict(model or Neighbours(), scene, folder / "map.tif", **outputs, **FAST | options)
    found = [read(folder / name).astype(int) for name in ("map.tif", *OUTPUTS.values())]
    return summary, [np.where(raster == 255, -1, raster) for raster in found]


def near(lost):
    """Return the pixels in reach of lost ones, without these."""
    reach = np.zeros_like(lost)
    for row, column in np.argwhere(lost):
        reach[max(0, row - RADIUS) : row + RADIUS + 1, max(0, column - RADIUS) : column + RADIUS + 1] = True
    return reach & ~lost


def skipped(scene, folder, **options):
    with pytest.warns(UserWarning, match=r"unreadable blocks? \(.*the first: .*rows 0 to 16, columns 0 to 16\) \w+ no"):
        return mapped(scene, folder, on_read_error="nodata", **options)


def test_lost_blocks_are_no_data_and_all_else_is_as_before(tmp_path, scene):
    """Also after an interruption, of a mosaic, and beside other scenes; and what is said of them."""
    undamaged, whole = mapped(scene, tmp_path / "whole", on_read_error="nodata")  # a warning would be an error
    assert undamaged.unreadable is None
    for block in LOST:
        break_block(scene, *block)
    lost = lost_pixels(SHAPE, *LOST)
    with pytest.raises(UnreadableError, match=r"scene\.tif: cannot be read at rows .* --on-read-error nodata"):
        mapped(scene, tmp_path / "found")
    assert len([*(tmp_path / "found/map.tif.bands").glob("band-*")]) == 0
    summary, found = skipped(scene, tmp_path / "found")
    for raster, before in zip(found, whole, strict=True):
        assert (raster[:, lost] == -1).all()
        unchanged = ~lost & ~near(lost)
        np.testing.assert_array_equal(raster[:, unchanged], before[:, unchanged])
        assert (raster[:, ~lost] != -1).all()
    assert (summary.unreadable.blocks, summary.unreadable.pixels) == (len(LOST), lost.sum())
    assert summary.valid == (~lost).sum()
    with rasterio.open(tmp_path / "found/map.tif") as dataset:
        told = json.loads(dataset.tags()["segkit_counts"])["unreadable"]
    assert (told["blocks"], told["first"]) == (len(LOST), f"{scene}, rows 0 to 16, columns 0 to 16")
    again, _ = skipped(scene, tmp_path / "found")
    assert (again.seconds, again.unreadable) == (0, summary.unreadable)
    with pytest.raises(OutputExistsError, match=r"3 unreadable blocks .* are no data in it; .* --on-read-error nodata"):
        mapped(scene, tmp_path / "found")

    with mock.patch.object(tasks, "build_cog", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        mapped(scene, tmp_path / "resumed", on_read_error="nodata")
    with pytest.raises(OutputExistsError, match=r"\d finished band\(s\) .* add --on-read-error nodata to continue"):
        mapped(scene, tmp_path / "resumed")
    resumed, rasters = skipped(scene, tmp_path / "resumed")
    assert resumed.resumed == resumed.bands
    for raster, same in zip(rasters, found, strict=True):
        np.testing.assert_array_equal(raster, same)
    with mock.patch.object(tasks, "build_cog", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        mapped(scene, tmp_path / "again", on_read_error="nodata")
    with pytest.raises(UnreadableError):
        mapped(scene, tmp_path / "again", overwrite=True)

    _, rasters = skipped(Mosaic([scene]), tmp_path / "mosaic")
    np.testing.assert_array_equal(rasters[0], found[0])


def test_what_is_finished_before_an_error_is_kept(tmp_path, scene):
    break_block(scene, 4, 0)
    with pytest.raises(UnreadableError):
        mapped(scene, tmp_path / "found")
    finished = len([*(tmp_path / "found/map.tif.bands").glob("band-*")])
    with pytest.warns(UserWarning, match="1 unreadable block"):
        summary, _ = mapped(scene, tmp_path / "found", on_read_error="nodata")
    assert 0 < finished == summary.resumed < summary.bands


def test_several_scenes_have_one_note(tmp_path, scene):
    others = [tmp_path / "b.tif", tmp_path / "c.tif"]
    for other in others:
        other.write_bytes(scene.read_bytes())
    break_block(scene, *LOST[0])
    break_block(others[0], *LOST[0])
    files = [scene, *others]
    with pytest.warns(UserWarning, match=r"2 unreadable blocks \(512 pixels, .* are no data in 2 maps") as caught:
        summaries = predict(Neighbours(), files, tmp_path / "maps", on_read_error="nodata", **FAST)
    assert len(caught) == 1
    assert [summary.unreadable and summary.unreadable.blocks for summary in summaries] == [1, 1, None]
    with pytest.raises(ScenesError, match="2 of 3 scenes failed"):
        predict(Neighbours(), files, tmp_path / "more", **FAST)


def test_a_graph_loses_the_same_pixels(tmp_path):
    """By the command, which says in one line what is lost, or why it fails."""
    random = np.random.default_rng(0)
    scene = write_blocks(tmp_path / "scene.tif", random.integers(1, 1000, (3, *SHAPE)).astype(np.uint16))
    write_graph(tmp_path / "model.onnx", segmenter(tmp_path, "multiclass"))
    break_block(scene, 1, 1)
    given = ("predict", "model.onnx", "scene.tif", "-o", "map.tif", "--tile", "32", "--overlap", "8")
    failed = call(given, tmp_path)
    assert failed.code == 1
    assert failed.said.splitlines()[-1].startswith("segkit: scene.tif: cannot be read at rows ")
    run = call((*given, "--on-read-error", "nodata"), tmp_path)
    assert run.code == 0, run.said
    assert run.said.count("1 unreadable block (256 pixels, 2.56 ha; the first: scene.tif, rows 16 to 32, ") == 1
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0] == 255, lost_pixels(SHAPE, (1, 1)))


def test_an_unknown_answer_to_errors_is_refused(tmp_path, scene):
    with pytest.raises(UsageError, match="on_read_error is 'skip'; it is 'fail' or 'nodata'"):
        mapped(scene, tmp_path / "found", on_read_error="skip")
