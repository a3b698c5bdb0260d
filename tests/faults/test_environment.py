"""Folders, permissions, names, streams, locales and limits of the system: a right result, or one clear error."""

import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from environment import FAST, MODEL, NAMES, WRITING, limited
from faults import call

from segkit.cli import app
from segkit.io.vector import read_layer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no such limits")
NOBODY = 65534
# With what shells, GDAL, pyogrio, SQLite, glob and typer take for something else; and a long one.
ODD_NAMES = (
    "my scene (1) Wälder ß 森林地图", "-scene", ".~a[1]*? 50%20 {x} 'q' \"d\" #,=@", "n" * 250,
)  # fmt: skip


def test_a_missing_folder_is_named_before_the_work(place):
    for name, command in WRITING.items():
        arguments = [word.replace("out/", "out/none/") for word in command]
        if name == "train":  # makes the folders above its own
            continue
        run = call(arguments, place)
        assert (run.code, run.outputs) == (2, {}), (name, run)
        assert "does not exist; make it first" in run.said, (name, run.said)
        assert run.said.count("\n") == 1


@pytest.fixture
def nobody():
    """Be a user without any rights for a while, who may not read Python's own files either."""
    import encodings.utf_8_sig  # noqa: F401 - with which recipes are read

    if os.getuid():
        pytest.skip("only root can be another user")
    os.setresuid(NOBODY, NOBODY, 0)
    yield
    os.setresuid(0, 0, 0)


def test_a_folder_of_another_user_is_named(place, nobody):
    for name, command in WRITING.items():
        run = call(command, place)
        assert run.code in (1, 2), (name, run)
        assert not run.outputs, name
        last = run.said.splitlines()[-1]
        assert last.startswith("segkit: out"), (name, run.said)
        assert "is not writable" in last or "Permission denied" in last, (name, run.said)


@pytest.mark.parametrize("file", ["map.tif", "names.csv", "zones.gpkg"])
def test_a_file_of_another_user_is_named(place, request, file):
    (place / file).chmod(0o600)
    request.addfinalizer(lambda: (place / file).chmod(0o644))
    request.getfixturevalue("nobody")
    run = call(("areas", "map.tif", "zones.gpkg", "--by", "name", *NAMES), place)
    assert run.code == 2
    assert run.said.startswith("segkit: ")
    assert f"'{file}' is not readable" in run.said
    assert run.said.count("\n") == 1


@pytest.mark.parametrize("name", ODD_NAMES)
def test_files_may_have_any_name(place, tmp_path, name):
    for source in ("map.tif", "zones.gpkg", "names.csv", MODEL):
        shutil.copy(place / source, tmp_path / f"{name[:150]}{Path(source).suffix}")
    (tmp_path / "images").mkdir()
    shutil.copy(place / "images" / "a.tif", tmp_path / "images" / f"{name}.tif")
    (tmp_path / "out").mkdir()
    name, scene = name[:150], f"images/{name}.tif"  # SQLite opens no path of more than 512 bytes
    for expected, command in {
        f"{name}.tif": ("predict", "-o", f"out/{name}.tif", *FAST, "--", f"{name}.safetensors", scene),
        f"{name}.gpkg": ("vectorize", "--class-names", f"{name}.csv", "--", f"{name}.tif", f"out/{name}.gpkg"),
        f"{name}.csv": ("areas", "--by", "name", "-o", f"out/{name}.csv", "--", f"{name}.tif", f"{name}.gpkg"),
    }.items():
        run = call(command, tmp_path)
        assert run.code == 0, (command, run.said)
        assert expected in run.outputs
    # Equal to what files of plain names give.
    plain = call(WRITING["vectorize gpkg"], place)
    assert plain.code == 0, plain.said
    found, other = (read_layer(path) for path in (tmp_path / "out" / f"{name}.gpkg", place / "out" / "v.gpkg"))
    assert np.array_equal(found.geometries, other.geometries)


@pytest.mark.parametrize("name", ["a;b", "a!b", "a\nb"])
def test_names_that_pyogrio_cuts_are_refused_for_vector_files(place, name):
    run = call(("vectorize", "map.tif", f"out/{name}.gpkg", *NAMES), place)
    assert (run.code, run.outputs) == (2, {}), run
    assert "vector files cannot be written to a path with" in run.said
    assert run.said.count("\n") == 1


def test_few_open_files_are_enough(place):
    """As with `ulimit -n 64`, of which a new process has some 50 left; tests that ran before may hold files open."""
    for command in ("predict", "vectorize shp", "evaluate"):
        with limited(resource.RLIMIT_NOFILE, 50 + len(list(Path("/proc/self/fd").iterdir()))):
            run = call(WRITING[command], place)
        assert run.code == 0, (command, run.said)


def run_with(arguments, folder, stdout, stderr):
    """Run the command line in this process with other streams; return the exit code."""
    with (
        mock.patch.object(sys, "argv", ["segkit", *arguments]),
        mock.patch.object(sys, "stdout", stdout),
        mock.patch.object(sys, "stderr", stderr),
        contextlib.chdir(folder),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        with pytest.raises(SystemExit) as end:
            app.main()
    return end.value.code


def unread():
    """A stream whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize("gone", ["stdout", "stderr", "both"])
def test_without_a_reader_of_its_messages_a_command_does_its_work(place, gone):
    streams = [unread() if gone in (name, "both") else io.StringIO() for name in ("stdout", "stderr")]
    assert run_with(("vectorize", "map.tif", "out/v.gpkg"), place, *streams) == 0  # with a warning
    assert (place / "out" / "v.gpkg").exists()
    for stream in streams:
        stream.close()  # nothing is left that cannot be written


def test_a_result_that_standard_output_does_not_take_is_an_error(place):
    messages = io.StringIO()
    with Path("/dev/full").open("w", buffering=1) as full:
        assert run_with(("info", "map.tif", "--json"), place, full, messages) == 1
    assert messages.getvalue() == (
        "segkit: standard output: No space left on device: free some space, or write to another disk\n"
    )
    with Path("/dev/full").open("w", buffering=1) as full:
        assert run_with(("info", "none.tif"), place, io.StringIO(), full) == 2


def test_a_locale_without_utf8_and_a_pipe_that_is_closed(place, tmp_path):
    """In a process of its own, since the interpreter reads its locale when it starts, and flushes when it ends."""
    shutil.copy(place / "map.tif", tmp_path / "Wälder.tif")
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "SEGKIT_CACHE") if name in os.environ}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # and no HOME
    command = f'"{sys.executable}" -m segkit.cli vectorize Wälder.tif {{}} 2>&1'
    done = subprocess.run(
        f"{command.format('Flächen.gpkg')} | cat; {command.format('zweite.shp')} | true; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", cwd=tmp_path, env=environment, capture_output=True, check=False,
    )  # fmt: skip
    said = done.stdout.decode()
    assert "Traceback" not in said, said
    assert "segkit: W\\xe4lder.tif" in said or "is not UTF-8" in said, said
    assert done.stderr == b""
