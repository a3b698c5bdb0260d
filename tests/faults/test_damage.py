"""Damaged files of each kind end in a right result or one clear error; tools/fuzz_files.py does this at length."""

import os
import re
import shutil

import numpy as np
import pytest
import rasterio
from broken_blocks import break_block
from environment import empty
from exported import classical
from fault_cases import KINDS, MODEL, TILES, zones
from faults import CHANGED, FINDINGS, REFUSED, SAME, Case, call, damages, run_damaged, undamaged
from places import SHARED

from segkit.io.raster import ignore_not_georeferenced

CUTS, FLIPS = 1, 1
SMALL = 5_000  # bytes of odd files that go through all commands
ODD = sorted((SHARED / "odd").rglob("*.tif*")) if SHARED.is_dir() else []


SLOW = {"onnx", "runs", "checkpoints"}  # an export and trainings take seconds


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SLOW])
def test_damaged_files_give_a_right_result_or_one_clear_error(tmp_path, kind):
    cases = (case for case in KINDS[kind](tmp_path / "whole") if not case.name.endswith("metadata predict"))
    for number, case in enumerate(cases):
        whole = undamaged(case, tmp_path / "work")
        for damage, change in damages(case, CUTS, FLIPS, seed=number):
            end, said = run_damaged(case, whole, tmp_path / "work", damage, change)
            assert end in {SAME, CHANGED, REFUSED}, f"{case.name}: {damage}: {end}: {said}"


@pytest.mark.parametrize("gone", ["zones.dbf", "zones.shx", "zones.prj"])
def test_a_shapefile_without_a_part_gives_no_table_or_the_right_one(tmp_path, gone):
    case = next(one for one in KINDS["vectors"](tmp_path / "whole") if one.file == gone)
    whole = undamaged(case, tmp_path / "work")
    (tmp_path / "work" / gone).unlink()
    shutil.rmtree(tmp_path / "work" / "out")
    (tmp_path / "work" / "out").mkdir()
    run = call(case.arguments, tmp_path / "work")
    refused = run.code == 1 and run.said.splitlines()[-1].startswith("segkit: zones.shp")
    assert run.outputs == whole.outputs if run.code == 0 else refused and not run.outputs


def commands_for(file, model):
    """Return the commands that read a raster: as a scene, as a map, and as labels."""
    return (
        ("info", file),
        ("predict", model, file, "-o", "out/map.tif", *TILES[-2:], "--precision", "fp32"),
        ("suggest", model, file, "-n", "1", "--size", "8px", "-o", "out/todo.gpkg"),
        ("evaluate", model, "--images", file, "--labels", file, "-o", "out/scores.json"),
        ("vectorize", file, "out/map.gpkg"),
        ("clean", file, "out/cleaned.tif", "--min-area", "4px"),
        ("reclassify", file, "out/new.tif", "--merge", "one=0,1"),
        ("change", file, file, "-o", "out/change.tif"),
        ("areas", file, "zones.gpkg", "-o", "out/areas.csv"),
        ("assess", "design", file, "-n", "60", "--min-per-stratum", "2", "-o", "out/points.gpkg"),
        ("report", file, "-o", "out/report.html"),
    )


@pytest.mark.skipif(not ODD, reason="the shared files are not here")
def test_odd_rasters_give_a_result_or_one_clear_error(tmp_path):
    """Through all commands that read rasters; of large files the facts alone."""
    (tmp_path / "out").mkdir()
    zones().to_file(tmp_path / "zones.gpkg")
    for bands in (1, 3):
        classical(tmp_path, bands=bands).save(tmp_path / f"{bands}.safetensors")
    for path in ODD:
        before = path.read_bytes()
        with ignore_not_georeferenced, rasterio.open(path) as dataset:
            commands = commands_for(path, f"{1 if dataset.count < 3 else 3}.safetensors")
        for command in commands if len(before) < SMALL else commands[:1]:
            run = call(command, tmp_path)
            last = (run.said.splitlines() or [""])[-1]
            is_error = run.code in (1, 2) and last.startswith("segkit: ") and not run.outputs
            assert run.code == 0 or is_error, (path.name, command, run.said)
            assert not any(words in run.said for words in FINDINGS), (path.name, command, run.said)
            empty(tmp_path / "out")
        assert path.read_bytes() == before


def _cut(path, row, column):
    """Cut off the file after the block before this one, which is the first of its row."""
    assert column == 0
    with rasterio.open(path) as dataset:
        end = int(dataset.get_tag_item(f"BLOCK_OFFSET_0_{row}", "TIFF", bidx=1))
    os.truncate(path, end)


REAL = {  # rows as JPEG, and rows that are not compressed
    "zurich/images/1091-322_00.tif": (1, 0, lambda path, *block: break_block(path, *block, share=0.5)),
    "denmark_fields/RGB_small.tif": (60, 0, _cut),
}


@pytest.mark.skipif(not ODD, reason="the shared files are not here")
@pytest.mark.parametrize("name", REAL)
def test_a_damaged_block_of_a_real_scene(tmp_path, name):
    """An error that names the window, or no data; all other pixels are those of the undamaged scene."""
    row, column, damage = REAL[name]
    classical(tmp_path, "binary").save(tmp_path / MODEL)
    shutil.copyfile(SHARED / name, tmp_path / "scene.tif")
    predict = ("predict", MODEL, "scene.tif", *TILES)
    assert call((*predict, "-o", "whole.tif"), tmp_path).code == 0
    with rasterio.open(tmp_path / "scene.tif") as dataset:
        height, width = dataset.block_shapes[0]
    damage(tmp_path / "scene.tif", row, column)
    damaged = (tmp_path / "scene.tif").read_bytes()
    run = call((*predict, "-o", "map.tif"), tmp_path)
    last = run.said.splitlines()[-1]
    assert run.code == 1
    assert re.match(r"segkit: scene\.tif: cannot be read at rows \d+ to \d+, columns \d+ to \d+; the file is dam", last)
    assert not (tmp_path / "map.tif").exists()
    assert call((*predict, "-o", "map.tif", "--on-read-error", "nodata"), tmp_path).code == 0
    found, expected = (rasterio.open(tmp_path / f"{one}.tif") for one in ("map", "whole"))
    with found, expected:
        codes, whole = found.read(1), expected.read(1)
        lost = np.zeros(codes.shape, bool)
        last_row = None if damage is _cut else (row + 1) * height
        lost[row * height : last_row, column * width : (column + 1) * width] = True
        np.testing.assert_array_equal(codes, np.where(lost, found.nodata, whole))
    assert (tmp_path / "scene.tif").read_bytes() == damaged


def test_a_broken_promise_is_found(tmp_path):
    """The classes of findings, on commands that stand for broken ones."""
    from faults import Run, classify

    case = Case("a", tmp_path, "a", ())
    whole = Run(0, "", {"map.tif": "1"})
    (tmp_path / "a").write_text("a")
    before = {"a": b"a"}
    found = [
        classify(case, run, whole, inputs, tmp_path, damage)
        for run, inputs, damage in (
            (Run(1, "segkit: unexpected KeyError: x"), before, "bit"),
            (Run(-1, "Traceback"), before, "bit"),
            (Run(1, "segkit: not enough memory"), before, "bit"),
            (Run(0, "", whole.outputs), {"a": b"b"}, "bit"),
            (Run(1, "segkit: no", {"map.tif": "1"}), before, "bit"),
            (Run(0, "", {"map.tif": "2"}), before, "cut at 3"),
            (Run(1, ""), before, "bit"),
        )
    ]
    assert not {SAME, CHANGED, REFUSED}.intersection(found)
    assert len({*found}) == len(found)
