import errno
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest
from house import modules
from killing import alone, forked, killed_at_every_step, names, unix

import segkit
from segkit.errors import MissingFileError, OutputError, OutputExistsError, UsageError
from segkit.io.files import (
    as_output_error,
    atomic_write,
    check_distinct,
    check_output,
    describe_error,
    describe_obstacle,
    escape_formula,
    fsync,
    lock_folder,
    not_as_written,
    private_folder,
    remove_atomically,
    remove_leftovers,
    require_file,
    temporary_folder,
)
from segkit.io.paths import is_there


def test_existing_returns_the_path_or_says_where_it_looked(tmp_path, monkeypatch):
    assert require_file(str(tmp_path), "folder") == tmp_path
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=r"^maps/a\.tif: no such raster; .*current folder \(") as caught:
        require_file("maps/a.tif", "raster")
    assert str(tmp_path) in str(caught.value)


def test_check_output_refuses_before_the_work(tmp_path, monkeypatch):
    there = tmp_path / "there.tif"
    there.write_text("old")
    with pytest.raises(UsageError, match=r"its folder .*/no does not exist; make it first \(mkdir -p .*/no\)"):
        check_output(tmp_path / "no" / "map.tif", overwrite=True)
    with pytest.raises(UsageError, match="is a folder; name a file in it"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(OutputExistsError, match=r"there\.tif is there already; add --overwrite"):
        check_output(there, overwrite=False)
    assert check_output(str(there), overwrite=True) == there
    assert check_output(tmp_path / "new.tif", overwrite=False) == tmp_path / "new.tif"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="is not writable"):
        check_output(tmp_path / "new.tif", overwrite=False)


def test_staged_files_appear_together_and_nothing_else(tmp_path):
    target = tmp_path / "layer.shp"
    target.write_text("old")
    with atomic_write(target) as part:
        assert part.name == target.name
        assert part.parent.parent == tmp_path  # on the same file system, so that a move is one rename
        part.write_text("new")
        part.with_suffix(".dbf").write_text("table")
        assert target.read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"layer.shp": "new", "layer.dbf": "table"}


def test_the_named_file_moves_last(tmp_path, monkeypatch):
    moved = []
    replace = type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, to: (moved.append(self.name), replace(self, to))[1])
    with atomic_write(tmp_path / "b.shp") as part:
        for name in ("c.dbf", "b.shp", "a.shx"):
            part.with_name(name).write_text("")
    assert len(moved) == 3
    assert moved[-1] == "b.shp"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_raises_changes_nothing(tmp_path, error):
    target = tmp_path / "map.tif"
    target.write_text("old")
    with pytest.raises(error), atomic_write(target) as part:  # noqa: PT012
        part.write_text("half")
        raise error
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(OutputError, match=r"map\.tif was not written"), atomic_write(tmp_path / "map.tif"):
        pass
    with pytest.raises(OutputError, match="was not written"), atomic_write(tmp_path / "map.tif") as part:
        part.with_name("other").write_text("")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_is_an_output_error(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OutputError, match=r"map\.tif could not be written: No space left.*: free some space"),
        atomic_write(tmp_path / "map.tif") as part,
    ):
        part.write_text("all")
    assert not list(tmp_path.iterdir())


def write_in_steps(target):
    """Write "new", and say when it is half done; then wait for a line before going on."""
    with atomic_write(target) as part:
        part.write_text("half")
        print(part.parent.name, flush=True)
        sys.stdin.readline()
        part.write_text("new")


def start_writing(target):
    """Start `write_in_steps` in another process; returns it and the folder that it works in."""
    command = [sys.executable, "-c", "import sys, test_files; test_files.write_in_steps(sys.argv[1])", str(target)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=Path(__file__).parent, stdin=pipe, stdout=pipe, text=True)
    return process, process.stdout.readline().strip()


@unix
@pytest.mark.parametrize("name", ["map.tif", "[map] (1)*.tif"])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path, name):
    target = tmp_path / name
    process, orphan = start_writing(target)
    process.kill()
    process.communicate()
    other = tmp_path / ".other.tif.0123abcd.part"  # for another name, so not this write's business
    other.mkdir()
    mine = tmp_path / f".{name}.old.part"
    mine.mkdir()
    assert names(tmp_path) == {orphan, other.name, mine.name}
    with atomic_write(target) as part:
        assert names(tmp_path) == {part.parent.name, other.name, mine.name}
        part.write_text("new")
    assert names(tmp_path) == {name, other.name, mine.name}
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {name, mine.name}


@unix
def test_what_another_process_or_this_one_works_on_stays(tmp_path):
    target = tmp_path / "map.tif"
    process, theirs = start_writing(target)
    with atomic_write(target) as outer:
        with atomic_write(target) as inner:
            assert names(tmp_path) == {theirs, outer.parent.name, inner.parent.name}
            inner.write_text("inner")
        outer.write_text("outer")
    assert target.read_text() == "outer"
    process.communicate("\n")
    assert process.returncode == 0
    assert target.read_text() == "new"
    assert names(tmp_path) == {"map.tif"}


def lock_under_a_living_child(folder):
    folder, said = Path(folder), Path(folder, "said")

    def parent():
        def child():
            said.write_text(str(os.getpid()))
            time.sleep(100)

        with lock_folder(folder):
            forked(child)
            while not said.exists() or not said.read_text():
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(forked(parent), 0)
    child = int(said.read_text())
    try:
        with lock_folder(folder) as held:
            assert held
    finally:
        os.kill(child, signal.SIGKILL)  # fails if it is not alive: then nothing was tested


@unix
def test_a_child_that_outlives_its_killed_parent_holds_no_lock(tmp_path):
    alone(lock_under_a_living_child, tmp_path)


@unix
def test_a_lock_is_held_once_and_only_on_the_folder_that_is_there(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with lock_folder(folder) as held:
        assert held
        with pytest.raises(BlockingIOError), lock_folder(folder):
            pass
        remove_atomically(folder)
        with pytest.raises(FileNotFoundError), lock_folder(folder):
            pass
        folder.mkdir()
        with lock_folder(folder) as held:
            assert held
    with lock_folder(folder) as held:
        assert held


@unix
@pytest.mark.parametrize("anew", [False, True])
def test_a_folder_that_is_removed_while_its_lock_is_taken_is_not_locked(tmp_path, monkeypatch, anew):
    import fcntl

    folder = tmp_path / "folder"
    folder.mkdir()
    flock = fcntl.flock

    def late(*arguments):
        monkeypatch.undo()
        remove_atomically(folder)
        if anew:
            folder.mkdir()
            (folder / ".lock").touch()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(BlockingIOError if anew else FileNotFoundError), lock_folder(folder):
        pass


@unix
def test_where_there_are_no_locks_nothing_is_cleaned(tmp_path, monkeypatch):
    import fcntl

    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with lock_folder(tmp_path) as held:
        assert not held
    (tmp_path / ".lock").unlink()
    target = tmp_path / "map.tif"
    with atomic_write(target) as first:
        first.write_text("first")
        with atomic_write(target) as second:
            second.write_text("second")
    assert target.read_text() == "first"
    assert names(tmp_path) == {"map.tif"}


def kill_at_every_step_of_a_write(folder):
    folder = Path(folder)
    target = folder / "map.tif"

    def prepare():
        target.write_text("old")

    def write():
        with atomic_write(target) as part:
            part.write_text("new")
            part.with_suffix(".tfw").write_text("part")

    def check():
        assert target.read_text() in ("old", "new")
        assert target.read_text() == "old" or (folder / "map.tfw").read_text() == "part"
        write()
        assert target.read_text() == "new"
        assert names(folder) == {"map.tif", "map.tfw"}
        (folder / "map.tfw").unlink()

    killed_at_every_step(write, prepare, check)


@unix
def test_a_write_that_is_killed_anywhere_is_whole_or_not_there_and_leaves_nothing_for_long(tmp_path):
    assert int(alone(kill_at_every_step_of_a_write, tmp_path)) > 5


def write_at_the_same_time(folder):
    target = Path(folder, "map.tif")

    def write():
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with atomic_write(target) as part:
                part.write_text("all")

    writers = [forked(write) for _ in range(4)]
    assert [os.waitpid(writer, 0)[1] for writer in writers] == [0] * 4
    assert target.read_text() == "all"
    assert names(target.parent) == {"map.tif"}


@unix
def test_processes_that_write_one_file_do_not_take_each_other_for_leftovers(tmp_path):
    alone(write_at_the_same_time, tmp_path)


def test_a_discarded_folder_goes_under_its_own_name_at_once(tmp_path, monkeypatch):
    folder = tmp_path / "band"
    folder.mkdir()
    (folder / "file").write_text("")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    remove_atomically(folder)
    assert not folder.exists()
    monkeypatch.undo()
    assert names(tmp_path)
    with temporary_folder(tmp_path, "band"):
        pass
    assert not names(tmp_path)


def ways_to(folder, name):
    """Other names of a file that is there: spelled otherwise, and links."""
    (folder / "sub").mkdir()
    (folder / "soft.tif").symlink_to(folder / name)
    (folder / "hard.tif").hardlink_to(folder / name)
    (folder / "folder").symlink_to(folder)
    return [name, f"sub/../{name}", "soft.tif", "hard.tif", f"folder/{name}"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights")
def test_outputs_that_are_one_file_or_an_input_are_refused_whatever_leads_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.tif"
    file.write_text("precious")
    ways = ways_to(tmp_path, "a.tif")
    for way in ways:
        with pytest.raises(UsageError, match=r"would be written to the same file; name another file"):
            check_distinct([file, way])
        with pytest.raises(UsageError, match=r"would overwrite .*a\.tif, which is an input"):
            check_distinct([way], [file])
        with pytest.raises(UsageError, match="which is an input; look"):
            check_distinct([file], [None, way], advice="look")
    check_distinct([file, None, "b.tif"], ["c.tif", "c.tif", "https://example.org/a.tif", None])
    (tmp_path / "a.json").write_text("{}")
    check_distinct(["a.json"], [file])
    (tmp_path / "a.json").write_text('{"assets": {"data": {"href": "./a.tif", "bands": [{"name": "red"}]}}}')
    with pytest.raises(UsageError, match=r"a\.json would overwrite .*a\.tif, which is an input"):
        check_distinct(["a.json"], [file])  # a STAC item from which names of bands are read


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("new.csv", "./new.csv"),
        ("a.shp", "a.dbf"),
        ("a.SHP", "a.shp"),
        ("a.gpkg", "a.gpkg-wal"),
        ("a.tif", "a.tif.ovr"),
        ("a.tif.bands", "a.tif.bands/a.tif"),
    ],
)
def test_what_belongs_to_a_file_and_what_lies_in_a_folder_is_taken_with_it(tmp_path, monkeypatch, one, other):
    monkeypatch.chdir(tmp_path)
    for pair in ([one, other], [other, one]):
        with pytest.raises(UsageError, match=r"the same file|which is written, too"):
            check_distinct(pair)
    with pytest.raises(UsageError, match="which is an input"):
        check_distinct([one], [other])
    check_distinct(["other.csv"], [one])
    check_distinct(["folder/a.csv"], ["folder"])  # a folder of inputs may hold an output


@pytest.mark.parametrize(
    "name", ["n" * 252 + ".tif", "n" * 240 + ".tif", "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 120]
)
def test_a_name_that_leaves_no_room_for_temporary_names_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"its name takes 2.. bytes; at most 2"):
        check_output(tmp_path / name, overwrite=True)
    check_output(tmp_path / ("n" * 234), overwrite=True)
    with atomic_write(tmp_path / ("n" * 234)) as part:
        part.write_text("")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are UTF-8")
def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/w\xe4lder.tif")
    for refuse in (lambda: check_output(name, overwrite=True), lambda: require_file(name)):
        with pytest.raises(UsageError, match=r"not UTF-8.* rename it") as caught:
            refuse()
        str(caught.value).encode()


@pytest.mark.parametrize("hidden", [False, True])
def test_a_file_that_the_system_does_not_look_for_is_not_called_missing(tmp_path, monkeypatch, hidden):
    """From Python 3.14 on, `Path.exists` is `os.path.exists`, which hides errors."""
    if hidden:
        monkeypatch.setattr(Path, "exists", is_there)
    with pytest.raises(UsageError, match="File name too long: shorten it"):
        require_file(tmp_path / ("n" * 300))
    for absent in (tmp_path / "a", tmp_path / "a" / "b", __file__ + "/a", "a\0b"):
        with pytest.raises(MissingFileError, match="no such file"):
            require_file(absent)


def test_a_full_disk_is_reported_where_it_is_one_and_nowhere_else(tmp_path, monkeypatch):
    assert (
        describe_error(OSError(28, "x"), tmp_path)
        == "No space left on device: free some space, or write to another disk"
    )
    assert describe_error(PermissionError(13, "x"), tmp_path) == "Permission denied"
    assert describe_error(RuntimeError("GDAL says\nmore"), tmp_path) == "GDAL says"
    assert describe_error(RuntimeError("a" * 2000), tmp_path).startswith("aaa")
    assert len(describe_error(RuntimeError("a" * 2000), tmp_path)) < 300
    error = RuntimeError("of a library")
    error.__cause__ = OSError(122, "x")
    assert describe_error(error, tmp_path) == os.strerror(122)
    assert describe_obstacle(tmp_path) == ""
    assert describe_obstacle(tmp_path / "gone") == "No such file or directory"
    part = tmp_path / ".map.tif.0123abcd.part" / "strip.tif"
    assert str(not_as_written(tmp_path / "map.tif", "differs")) == f"{tmp_path}/map.tif: differs"
    lost = f"{tmp_path}/map.tif could not be written: No such file or directory"
    assert str(not_as_written(part, "differs")) == lost  # the folder, so no temporary name is shown

    def full(descriptor):
        raise OSError(28, "x")

    monkeypatch.setattr(os, "fsync", full)
    full_disk = "No space left on device: free some space, or write to another disk"
    assert describe_error(RuntimeError("GDAL says much about SQL."), tmp_path) == full_disk
    assert describe_error(RuntimeError("I/O error: (os error 28)"), tmp_path) == full_disk
    assert str(not_as_written(tmp_path / "a.tif", "differs")) == f"{tmp_path}/a.tif could not be written: {full_disk}"
    assert not list(tmp_path.iterdir())


def test_errors_of_libraries_become_output_errors_where_they_are_named(tmp_path):
    with (
        pytest.raises(OutputError, match=r"^map\.tif could not be written: it says"),
        as_output_error(tmp_path / "part" / "map.tif", RuntimeError, name="map.tif"),
    ):
        raise RuntimeError("it says")
    with pytest.raises(RuntimeError, match="it says"), as_output_error(tmp_path / "map.tif"):
        raise RuntimeError("it says")
    with (
        pytest.raises(OutputError, match=r"map\.tif could not be written: Is a directory"),
        atomic_write(tmp_path / "map.tif"),
    ):
        (tmp_path).write_text("")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_a_formula_in_a_cell_is_text(text):
    assert escape_formula(text) == f"'{text}"
    assert escape_formula(f"a{text}") == f"a{text}"
    assert escape_formula("") == ""


@unix
def test_a_private_folder_is_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = private_folder()
    assert folder == private_folder() == tmp_path / f"segkit-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    assert private_folder() is None, "others can write to it"
    folder.rmdir()
    (tmp_path / "theirs").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "theirs")
    assert private_folder() is None
    folder.unlink()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert private_folder() is None


def test_windows_waits_for_files_only(tmp_path, monkeypatch):
    """It opens no folders, and refuses to wait for a file that is opened for reading."""
    real, flags_of = os.open, {}

    def windows_open(path, flags, *arguments):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        descriptor = real(path, flags, *arguments)
        flags_of[descriptor] = flags
        return descriptor

    def windows_fsync(descriptor):
        if not flags_of[descriptor] & os.O_RDWR:
            raise OSError(errno.EBADF, "Bad file descriptor")

    (tmp_path / "a").write_text("content")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "open", windows_open)
    monkeypatch.setattr(os, "fsync", windows_fsync)
    fsync(tmp_path / "a")
    fsync(tmp_path)
    assert len(flags_of) == 1
    assert (tmp_path / "a").read_text() == "content"


UNIX_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
UNIX_USERS = ["io/files", "io/mosaic_dataset", "inference/summary"]


def test_no_other_module_needs_what_only_unix_has():
    imports = re.compile(rf"^\s*(import|from) ({'|'.join(UNIX_MODULES)})\b", re.MULTILINE)
    found = {name for name, file in modules().items() if imports.search(file.read_text(encoding="utf-8"))}
    assert found == {name.replace("/", ".") for name in UNIX_USERS}


@pytest.mark.parametrize("name", UNIX_USERS)
def test_modules_load_without_what_only_unix_has(tmp_path, monkeypatch, name):
    """As on Windows; the modules get another name, so those in use stay as they are."""
    importlib.import_module(f"segkit.{name.replace('/', '.')}")  # with other libraries, which are of this system
    for module in UNIX_MODULES:
        monkeypatch.setitem(sys.modules, module, None)  # an import fails
    for function in ("fork", "getuid", "pathconf", "register_at_fork", "sched_getaffinity", "setpriority", "sysconf"):
        monkeypatch.delattr(os, function, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    where = Path(segkit.__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location("on_windows", where)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "on_windows", module)
    spec.loader.exec_module(module)
    if name == "io/files":
        with module.temporary_folder(tmp_path, "work") as folder, module.lock_folder(folder) as locked:
            assert not locked
        with module.atomic_write(tmp_path / "a") as part:
            part.write_text("content")
        assert names(tmp_path) == {"a"}
        assert module.private_folder() is None
        assert module.describe_obstacle(tmp_path) == ""
    if name == "io/mosaic_dataset":
        assert module._open_files_limit() > 2
    if name == "inference/summary":
        memory = mock.Mock(**{"Process.return_value.memory_info.return_value.peak_wset": 5})
        monkeypatch.setattr(module, "psutil", memory)
        assert module.peak_memory() == 5
