"""On a full disk each command that writes ends with one clear line, and leaves nothing half-written."""

import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
from environment import KEPT, WRITING, empty, fill, inputs, limited, small_disk, used
from faults import call

from segkit.io.files import LOCK_FILE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no such limits")
EARLY = ("predict", "vectorize gpkg", "areas csv")  # also with no space at all


def check(run, place, whole, command):
    """Check the end of a command under a limit: all outputs, or a line that names the reason and no part of a file."""
    left = {name: content for name, content in run.outputs.items() if name.split("/")[0] not in KEPT}
    assert ".part" not in "".join(run.outputs), run.outputs
    if run.code == 0:
        assert run.outputs.keys() == whole.keys(), command
        return False
    last = run.said.splitlines()[-1]
    assert run.code == 1, (command, run)
    assert last.startswith("segkit: "), (command, run.said)
    assert "No space left on device" in last or "may not be that large (ulimit -f" in last, (command, last)
    assert "Traceback" not in run.said
    assert "segkit: unexpected" not in run.said
    assert ".part/" not in last, last
    assert left.keys() <= whole.keys(), (command, left)
    return True


@pytest.fixture
def _closed_before_removed(monkeypatch):
    """Windows removes no folder with an open file."""
    real = shutil.rmtree

    def remove(folder, **options):
        opened = [os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()]
        inside = f"{os.path.realpath(folder)}{os.sep}"
        assert not [file for file in opened if file.startswith(inside) and LOCK_FILE not in file]  # locks: Unix only
        real(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", remove)


@pytest.mark.usefixtures("_closed_before_removed")
@pytest.mark.parametrize("command", WRITING)
def test_on_a_full_disk_a_command_writes_all_or_says_why_it_does_not(place, command):
    """If no file system can be mounted, files that may not grow stand for a full one."""
    before, out = inputs(place), place / "out"
    with small_disk(out, 16_384) as mounted:
        whole = call(WRITING[command], place)
        assert whole.code == 0, whole.said
        needed, largest = used(out), max(path.stat().st_size for path in out.rglob("*") if path.is_file())
        failed = 0
        for share in (0, 0.6) if command in EARLY else (0.6,):
            empty(out)
            if mounted:
                filler = fill(out, needed * share)
                run = call(WRITING[command], place)
                filler.unlink()
                run.outputs.pop(filler.name)
            else:
                with limited(resource.RLIMIT_FSIZE, int(largest * share)):
                    run = call(WRITING[command], place)
            failed += check(run, place, whole.outputs, command)
        assert failed
        if command == "predict":  # goes on by the same command
            run = call(WRITING[command], place)
            assert (run.code, run.outputs) == (0, whole.outputs), run.said
        empty(out)
    assert inputs(place) == before


@pytest.mark.parametrize("command", ["predict", "vectorize gpkg", "areas xlsx", "reclassify model"])
def test_if_files_may_not_grow_a_command_says_so(place, command):
    out = place / "out"
    with limited(resource.RLIMIT_FSIZE, 500):
        run = call(WRITING[command], place)
    assert check(run, place, dict.fromkeys(run.outputs), command)
    empty(out)
