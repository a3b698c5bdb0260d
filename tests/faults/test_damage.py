"""Damaged files of each kind end in a right result or one clear error; tools/fuzz_files.py does this at length."""

import shutil

import pytest
from fault_cases import KINDS
from faults import CHANGED, REFUSED, SAME, Case, call, damages, run_damaged, undamaged
from places import SHARED

CUTS, FLIPS = 1, 1
ODD = sorted((SHARED / "odd").rglob("*.tif*")) if SHARED.is_dir() else []


SLOW = {"onnx", "windows", "runs", "checkpoints"}  # an export, a prediction and trainings take seconds


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


@pytest.mark.skipif(not ODD, reason="the shared files are not here")
def test_odd_rasters_give_facts_or_one_clear_error(tmp_path):
    for path in ODD:
        before = path.read_bytes()
        run = call(("info", path), tmp_path)
        last = (run.said.splitlines() or [""])[-1]
        assert run.code == 0 or (run.code == 1 and last.startswith("segkit: ")), (path.name, run.said)
        assert "segkit: unexpected" not in run.said, run.said
        assert path.read_bytes() == before


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
