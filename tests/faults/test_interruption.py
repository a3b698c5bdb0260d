"""A command that is stopped says so in one line, with what it keeps, and leaves nothing half-written."""

import os
import signal
import sys
from unittest import mock

import pytest
from environment import KEPT, WRITING, empty, inputs
from faults import call

from segkit.io import files
from segkit.runtime import progress

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
# Commands without a step that is worth a bar.
SHORT = ("reclassify model", "assess estimate", "info")
SAID = {
    "predict": "finished parts are kept; run the same command again to continue",
    "train": "nothing has changed; run the same command again",
    "compare": "finished trainings and epochs are kept; run the same command again to continue",
}


def stopped(command, place, owner, name, number):
    """Run a command that gets a signal at the first call of a function; return the end, None if it gets none."""
    sent, original = [], getattr(owner, name)

    def send(*given, **options):
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(*given, **options)

    with mock.patch.object(owner, name, send):
        run = call(WRITING[command], place)
    return run if sent else None


@pytest.mark.parametrize("command", WRITING)
def test_a_stopped_command_says_what_is_kept_and_leaves_nothing_half_written(place, command):
    """By Ctrl-C at the first step of its work; by SIGTERM when its first file is written, under another name."""
    before = inputs(place)
    at_work = stopped(command, place, progress._Lines, "advance", signal.SIGINT)
    assert (at_work is None) == (command in SHORT)
    empty(place / "out")
    at_writing = stopped(command, place, files, "fsync", signal.SIGTERM)
    for run, code, words in ((at_work, 130, "interrupted"), (at_writing, 143, "ended by SIGTERM")):
        if run is None:
            continue
        assert run.code == code, run.said
        assert run.said.splitlines()[-1] == f"segkit: {words}; {SAID.get(command, 'no partial output is left')}"
        assert "Traceback" not in run.said
        assert [name for name in run.outputs if name.split("/")[0] not in KEPT or ".part" in name] == []
    assert inputs(place) == before
