import itertools
import json
import os
import pickle
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

import pytest
from killing import alone, forked, killed_at_every_step, names, unix

from segkit.errors import OutputError, OutputExistsError, RasterError
from segkit.inference.journal import Journal

REQUEST = {"model": "a1b2", "scene": ["a.tif", "b.tif"], "overlap": 128, "aoi": None}
OTHER = REQUEST | {"overlap": 64}
PLAN, SMALLER = {"tile": 1024, "margins": (32, 32)}, {"tile": 512, "margins": (32, 32)}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "map.tif"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "map.tif.bands"


def opened(target, request=REQUEST, overwrite=False):
    return Journal.open(Path(target), request, overwrite=overwrite)


def content(journal, band):
    """What a band should be: it differs with request, plan and band."""
    return json.dumps([journal._request, journal.plan, band], sort_keys=True) * 20


def write(journal, band):
    with journal.write_band(band) as work:
        write_into(work, journal, band)


def write_into(work, journal, band):
    text = content(journal, band)
    for name in ("map.tif", "top.tif"):
        (work.folder / name).write_text(name + text)
    work.data = {"said": text, "counts": (band, 1)}


def is_right(journal, band):
    """Whether a band is finished; if it is, it is the right one."""
    data = journal.load_band(band)
    if data is None:
        return False
    text = content(journal, band)
    assert data == {"said": text, "counts": [band, 1]}
    assert all(journal.file_path(band, name).read_text() == name + text for name in ("map.tif", "top.tif"))
    return True


def compute(target, request=REQUEST, plan=PLAN, bands=3, overwrite=False):
    """Do what is not done of a request, and leave its bands; returns which were done already."""
    with opened(target, request, overwrite) as journal:
        journal.record_plan(plan)
        done = [band for band in range(bands) if is_right(journal, band)]
        for band in set(range(bands)) - set(done):
            write(journal, band)
        assert all(is_right(journal, band) for band in range(bands))
    return done


def test_bands_are_found_again_with_their_files_data_and_plan(target, folder, tmp_path):
    with opened(target) as journal:
        assert journal.plan is None
        journal.record_plan(PLAN)
        assert journal.load_band(3) is None
        write(journal, 3)
        assert is_right(journal, 3)  # the data reads the same now and after JSON: lists, not tuples
        assert journal.file_path(3, "map.tif") == folder / "band-00003" / "map.tif"
    with opened(str(target)) as journal:
        assert journal.plan == {"tile": 1024, "margins": [32, 32]}
        journal.record_plan(PLAN)
        assert is_right(journal, 3)
        assert journal.load_band(4) is None
        assert names(folder) == {".lock", "request.json", "band-00003"}
        journal.remove()
        assert not names(tmp_path)
    assert not names(tmp_path)


def test_a_journal_stays_what_it_was_made_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request, plan = {"scene": ["a.tif"]}, {"tiles": [512]}
    with opened("map.tif", request) as journal:
        journal.record_plan(plan)
        request["scene"].append("b.tif")
        plan["tiles"].append(256)
        monkeypatch.chdir("/")
        write(journal, 0)
    monkeypatch.chdir(tmp_path)
    with opened("map.tif", {"scene": ["a.tif"]}) as journal:
        assert journal.plan == {"tiles": [512]}
        assert is_right(journal, 0)


def test_a_journal_that_somebody_died_removing_goes_first(target, folder, tmp_path):
    left = tmp_path / ".map.tif.bands.0123abcd.part"
    compute(target)
    folder.rename(left)
    with opened(target) as journal:
        assert names(tmp_path) == {"map.tif.bands"}
        assert journal.plan is None


def test_a_band_of_no_files_and_no_data_is_finished_too(target):
    with opened(target) as journal, journal.write_band(0):
        pass
    with opened(target) as journal:
        assert journal.load_band(0) == {}


def test_a_journal_without_a_finished_band_leaves_no_folder(target, tmp_path):
    with pytest.raises(KeyError), opened(target):
        raise KeyError
    assert not names(tmp_path)
    with opened(target) as journal:
        journal.record_plan(PLAN)
    assert not names(tmp_path)


def test_the_same_request_is_continued_and_another_one_refused_by_name(target, folder):
    compute(target)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    same = dict(reversed(REQUEST.items())) | {"scene": ("a.tif", "b.tif")}  # the same in JSON
    for overwrite in (False, True):
        assert compute(target, same, overwrite=overwrite) == [0, 1, 2]
    other = {"model": "a1b2", "scene": ["a.tif", "c.tif"], "overlap": 64, "precision": "bf16"}
    with pytest.raises(OutputExistsError) as caught, opened(target, other):
        pass
    message = str(caught.value)
    assert str(folder) in message
    assert "3 finished band(s) of another request are in" in message
    assert (
        '(scene was ["a.tif", "b.tif"], is ["a.tif", "c.tif"]; overlap was 128, is 64; aoi was null, is not given; '
        'precision was not given, is "bf16")'
    ) in message
    assert message.endswith("run the same command to continue, or add --overwrite to start afresh")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert compute(target, other, overwrite=True) == []
    assert compute(target, other) == [0, 1, 2]


def test_long_values_are_shown_where_they_differ(target):
    files = [f"/data/sentinel/2024/tile_{number:04d}.tif" for number in range(50)]
    compute(target, {"scene": files})
    with pytest.raises(OutputExistsError) as caught, opened(target, {"scene": [*files[:40], "/x.tif", *files[41:]]}):
        pass
    messages = str(caught.value).split("(scene was ")[1].split(");")[0]
    was, now = messages.split(", is ")
    assert was != now
    assert '"/data/senti' in was
    assert '"/x.tif"' in now
    assert max(len(was), len(now)) < 50


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_text(file.read_text()[:-20]),
        lambda file: file.write_text("[]"),
        lambda file: file.write_bytes(b"\xff"),
        lambda file: file.write_text(file.read_text().replace("1024", "1025")),  # of the plan
    ],
)
def test_a_damaged_request_is_another_one(target, folder, damage):
    compute(target)
    damage(folder / "request.json")
    with pytest.raises(OutputExistsError, match=r"request\.json is missing or damaged"), opened(target):
        pass
    assert names(folder) >= {"band-00000", "band-00001", "band-00002"}
    assert compute(target, overwrite=True) == []
    for band in folder.glob("band-*"):
        shutil.rmtree(band)
    damage(folder / "request.json")
    assert compute(target) == []  # nothing is lost


def test_another_request_without_finished_bands_is_not_in_the_way(target):
    with opened(target) as journal:
        journal.record_plan(PLAN)
    with opened(target, OTHER) as journal:
        assert journal.plan is None


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("foreign", ["notes.txt", "band-1", "band-00001.tif", ".git", "request.json.bak"])
def test_a_folder_of_somebody_else_is_left_alone(target, folder, overwrite, foreign):
    folder.mkdir()
    (folder / foreign).write_text("precious")
    refused = pytest.raises(OutputExistsError, match=f"but it contains {foreign}, which is not from")
    with refused, opened(target, overwrite=overwrite):
        pass
    assert names(folder) == {foreign}


def test_what_a_system_leaves_in_any_folder_is_not_in_the_way(target, folder, tmp_path):
    compute(target)
    for name in (".DS_Store", ".nfs000000000001"):
        (folder / name).write_text("")
    assert compute(target) == [0, 1, 2]
    with opened(target) as journal:
        journal.remove()
    assert not names(tmp_path)


def test_a_file_in_the_journals_place_is_reported(target, folder):
    folder.write_text("precious")
    with pytest.raises(OutputExistsError, match="is a file"), opened(target, overwrite=True):
        pass
    assert folder.read_text() == "precious"


def test_another_plan_removes_what_was_finished_under_the_old_one(target, folder):
    compute(target)
    with opened(target) as journal:
        assert is_right(journal, 0)
        journal.record_plan(SMALLER)
        assert not [journal.load_band(band) for band in range(3) if journal.load_band(band)]
        write(journal, 0)
        journal.record_plan(dict(reversed(SMALLER.items())))  # the same
        assert is_right(journal, 0)
    with opened(target) as journal:
        assert journal.plan == {"tile": 512, "margins": [32, 32]}
        assert is_right(journal, 0)
        assert names(folder) == {".lock", "request.json", "band-00000"}


@pytest.mark.parametrize("name", ["map.tif", "record.json"])
def test_a_changed_byte_anywhere_is_found(target, folder, name):
    compute(target, bands=1)
    file = folder / "band-00000" / name
    whole = file.read_bytes()
    for at in range(0, len(whole), len(whole) // 70):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        file.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as caught, opened(target) as journal:
            warnings.simplefilter("always")
            if is_right(journal, 0):  # white space of a record may change
                assert json.loads(damaged) == json.loads(whole)
                continue
        (messages,) = [str(one.message) for one in caught]
        assert messages.startswith(f"{target}: band 0 is damaged and is computed again: ")
        assert not file.parent.exists()
        assert compute(target, bands=1) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda band: (band / "map.tif").unlink(),
        lambda band: (band / "record.json").unlink(),
        lambda band: (band / "record.json").write_text("null"),
        lambda band: (band / "record.json").write_bytes(b"\xff"),
        lambda band: os.truncate(band / "map.tif", 100),
        lambda band: os.truncate(band / "map.tif", 100_000),
        lambda band: (band / "map.tif").write_bytes((band / "top.tif").read_bytes()),
        lambda band: (shutil.rmtree(band), band.mkdir()),
    ],
)
def test_a_damaged_band_is_removed_with_a_warning_and_the_others_stay(target, folder, damage):
    compute(target)
    damage(folder / "band-00001")
    with opened(target) as journal:
        with pytest.warns(UserWarning, match=r"map\.tif: band 1 is damaged and is computed again: .") as caught:
            assert [is_right(journal, band) for band in range(3)] == [True, False, True]
        assert len(caught) == 1
        assert names(folder) == {".lock", "request.json", "band-00000", "band-00002"}
    assert compute(target) == [0, 2]


def test_a_band_is_verified_once(target, folder):
    compute(target, bands=1)
    with opened(target) as journal:
        assert is_right(journal, 0)
        (folder / "band-00000" / "map.tif").unlink()
        assert journal.load_band(0) is not None
        # ... but not when it is written again: then there is nothing better to keep.
        with pytest.warns(UserWarning, match="is damaged"):
            write(journal, 0)
        assert is_right(journal, 0)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, RasterError])
def test_a_block_that_raises_leaves_nothing_of_its_band(target, folder, error):
    with opened(target) as journal:
        write(journal, 0)
        with pytest.raises(error), journal.write_band(1) as work:  # noqa: PT012
            (work.folder / "map.tif").write_text("half")
            raise error
        assert names(folder) == {".lock", "request.json", "band-00000"}
        with pytest.raises(TypeError, match="JSON"), journal.write_band(1) as work:
            work.data = {"counts": object()}
        assert names(folder) == {".lock", "request.json", "band-00000"}


@pytest.mark.parametrize("theirs", ["right", "damaged", "of another plan"])
def test_who_finishes_a_band_first_is_kept_if_it_is_right(target, folder, theirs):
    with opened(target) as journal, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        journal.record_plan(PLAN)
        faster = pickle.loads(pickle.dumps(journal))  # as another machine gets it
        if theirs == "of another plan":
            faster._plan = SMALLER
        with journal.write_band(0) as work:
            write_into(work, journal, 0)
            write(faster, 0)
            first = (folder / "band-00000").stat().st_ino
            if theirs == "damaged":
                (folder / "band-00000" / "top.tif").unlink()
        assert is_right(journal, 0)
        assert ((folder / "band-00000").stat().st_ino == first) == (theirs == "right")
        assert len(caught) == (theirs != "right")
        assert names(folder) == {".lock", "request.json", "band-00000"}


def test_what_a_straggler_finishes_for_another_request_never_counts(target):
    with opened(target) as journal:
        journal.record_plan(PLAN)
        write(journal, 0)
        straggler = pickle.loads(pickle.dumps(journal))
    with opened(target, OTHER, overwrite=True) as journal:
        journal.record_plan(PLAN)
        write(straggler, 1)
        with pytest.warns(UserWarning, match="band 1 .* to another request or plan"):
            assert journal.load_band(1) is None
        journal.remove()
        with pytest.raises(OutputError):
            write(straggler, 2)
        assert not target.with_name("map.tif.bands").exists()


def finish(target, log):
    """Do the whole job: what is left of it, the map, and the journal away; each band that it finished is logged."""
    with opened(target) as journal:
        journal.record_plan(PLAN)
        for band in range(BANDS):
            if not is_right(journal, band):
                write(journal, band)
                with Path(log).open("a") as file:
                    file.write(f"{band}\n")
        Path(target).write_text("map")
        journal.remove()


BANDS = 2


def logged(log):
    return [int(line) for line in Path(log).read_text().split()]


def clean(folder):
    shutil.rmtree(folder)
    folder.mkdir()


class KilledAtEveryStep:
    """Jobs, each with the state before it and what must hold when it was killed anywhere."""

    def __init__(self, target):
        self.target, self.log = target, target.with_name("log")

    def before_finish(self):
        clean(self.target.parent)
        self.log.touch()

    def finish(self):
        finish(self.target, self.log)

    def after_finish(self):
        with opened(self.target) as journal:
            found = [band for band in range(BANDS) if is_right(journal, band)]
        assert self.target.exists() or set(found) >= set(logged(self.log))
        self.finish()
        assert names(self.target.parent) == {"map.tif", "log"}

    def before_record_plan(self):
        clean(self.target.parent)
        compute(self.target, bands=BANDS)

    def record_plan(self):
        compute(self.target, plan=SMALLER, bands=BANDS)

    def after_record_plan(self):
        with opened(self.target) as journal:
            assert journal.plan["tile"] in (1024, 512)
            found = [band for band in range(BANDS) if is_right(journal, band)]
        assert compute(self.target, plan=SMALLER, bands=BANDS) == (found if journal.plan["tile"] == 512 else [])

    before_overwrite = before_record_plan

    def overwrite(self):
        compute(self.target, OTHER, bands=BANDS, overwrite=True)

    def after_overwrite(self):
        shutil.copytree(self.target.parent, copy := self.target.parent / "copy", symlinks=True)
        try:
            compute(copy / "map.tif", bands=BANDS)  # compares what it finds
        except OutputExistsError:
            assert compute(copy / "map.tif", OTHER, bands=BANDS)
        compute(self.target, OTHER, bands=BANDS, overwrite=True)
        assert compute(self.target, OTHER, bands=BANDS) == [0, 1]

    def before_damaged(self):
        self.before_record_plan()
        os.truncate(self.target.with_name("map.tif.bands") / "band-00001" / "map.tif", 10)

    def damaged(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compute(self.target, bands=BANDS)

    def after_damaged(self):
        self.damaged()
        assert compute(self.target, bands=BANDS) == [0, 1]


def kill_at_every_step(folder, job):
    os.fsync = lambda descriptor: None  # nobody pulls a plug here
    warnings.simplefilter("error", UserWarning)
    jobs = KilledAtEveryStep(Path(folder, "here", "map.tif"))
    jobs.target.parent.mkdir()
    killed_at_every_step(*(getattr(jobs, name) for name in (job, f"before_{job}", f"after_{job}")))


@unix
@pytest.mark.parametrize("job", ["finish", "record_plan", "overwrite", "damaged"])
def test_a_kill_anywhere_costs_nothing_but_the_band_in_work(tmp_path, job):
    assert int(alone(kill_at_every_step, tmp_path, job)) > 15


def kill_at_any_time(target):
    global BANDS
    BANDS = 40
    os.fsync = lambda descriptor: None
    warnings.simplefilter("error", UserWarning)
    log = Path(target).with_name("log")
    log.touch()
    dice = random.Random(0)
    for kills in itertools.count():
        child = forked(lambda: finish(target, log))
        time.sleep(dice.uniform(0, 0.003 * kills))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] in (0, signal.SIGKILL)
        with opened(target) as journal:
            if Path(target).exists():
                journal.remove()
                break
            assert all(is_right(journal, band) for band in logged(log))
    assert kills > 5
    assert len(set(logged(log))) == len(logged(log))  # no band was done twice
    assert names(log.parent) == {"map.tif", "log"}


@unix
def test_kills_at_any_time_cost_nothing_but_the_band_in_work(target):
    alone(kill_at_any_time, target)


def open_what_another_has_open(target):
    said = Path(target).with_name("said")

    def work():
        with opened(target) as journal:
            journal.record_plan(PLAN)
            write(journal, 0)
            with journal.write_band(1):
                said.touch()
                time.sleep(100)

    child = forked(work)
    while not said.exists():
        time.sleep(0.01)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"map\.tif: another segkit predict is writing it"):
            compute(target, OTHER, overwrite=overwrite)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    folder = Path(f"{target}.bands")
    assert len(names(folder)) == 4
    with opened(target):
        assert names(folder) == {".lock", "request.json", "band-00000"}
    assert compute(target) == [0]


@unix
def test_one_process_at_a_time_and_the_next_one_at_once(target):
    alone(open_what_another_has_open, target)


def write_the_same_bands(target):
    with opened(target) as journal:
        journal.record_plan(PLAN)

        def work():
            for band in range(20):
                write(journal, band)
                assert is_right(journal, band)

        workers = [forked(work) for _ in range(4)]
        assert [os.waitpid(worker, 0)[1] for worker in workers] == [0] * 4
        assert all(is_right(journal, band) for band in range(20))
        assert names(Path(f"{target}.bands")) == {".lock", "request.json", *(f"band-{band:05d}" for band in range(20))}


@unix
def test_processes_may_work_on_the_same_band(target):
    alone(write_the_same_bands, target)


def fill_the_disk(target):
    """A file that may not grow stands for a disk that is full: in the block, at the record, at the request."""
    import resource

    compute(target, bands=2)
    folder = Path(f"{target}.bands")
    before = names(folder)
    file, record = (folder / "band-00000" / name for name in ("map.tif", "record.json"))
    assert record.stat().st_size > file.stat().st_size + 10
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for size in (file.stat().st_size - 10, file.stat().st_size + 10):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        with opened(target) as journal:
            with pytest.raises(OutputError) as caught:
                write(journal, 2)
            assert str(caught.value).startswith(f"{target}: {folder} could not be written: ")
            assert "File too large: files here may not be that large (ulimit -f" in str(caught.value)
            assert "Finished bands are kept; the same command resumes" in str(caught.value)
            assert names(folder) == before
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
    with opened(target) as journal:
        with pytest.raises(OutputError, match="files here may not be that large"):
            journal.record_plan(SMALLER)
        assert journal.plan["tile"] == 1024
    other = folder.with_name("other.tif")
    with pytest.raises(OutputError, match="files here may not be that large"), opened(other):
        pass
    assert not names(folder.parent)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert compute(target) == []


@unix
def test_a_full_disk_is_reported_and_costs_only_the_band_in_work(target):
    alone(fill_the_disk, target)


@unix
def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    """Nobody but root may pass pytest's folders, and root may not when it is nobody."""
    tmp_path.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with (
            pytest.raises(OutputError, match=r"map\.tif: .*bands could not be written: .*Permission denied"),
            opened(tmp_path / "map.tif"),
        ):
            pass
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o755)


def test_a_journal_that_cannot_be_removed_does_not_fail_a_map_that_is_there(target, folder, monkeypatch):
    compute(target)

    def refuse(self, to):
        raise PermissionError(13, "Permission denied")

    with opened(target) as journal:
        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.warns(UserWarning, match="could not be removed: .*Permission denied"):
            journal.remove()
    monkeypatch.undo()
    assert compute(target) == [0, 1, 2]


@unix
def test_without_locks_there_is_a_journal_all_the_same(target, tmp_path, monkeypatch):
    import fcntl

    def none(descriptor, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    left = tmp_path / "map.tif.bands" / ".band-00002.0123abcd.part"
    compute(target, bands=2)
    left.mkdir()
    with opened(target) as journal:
        assert is_right(journal, 1)
        write(journal, 2)
        assert left.exists()  # it might be another machine's
        journal.remove()
    assert not names(tmp_path)


def test_what_gets_its_final_name_is_on_the_disk_before_and_the_name_soon_after(target, folder, monkeypatch):
    synced, moved = [], []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
    for name in ("rename", "replace"):

        def watched(self, to, move=getattr(Path, name)):
            if not to.name.startswith("."):
                whole = [self, *self.rglob("*")] if self.is_dir() else [self]
                assert {path.stat().st_ino for path in whole} <= set(synced)
                synced.clear()
                moved.append(to)
            return move(self, to)

        monkeypatch.setattr(Path, name, watched)
    with opened(target) as journal:
        journal.record_plan(PLAN)
        write(journal, 0)
        assert moved == [folder / "request.json", folder / "request.json", folder / "band-00000"]
        assert folder.stat().st_ino in synced
