"""Processes that are forked, killed at every step, and what is left of them."""

import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

unix = pytest.mark.skipif(sys.platform == "win32", reason="no locks, no fork")


def alone(function, *arguments):
    """Run a function of a test file in a process of its own, which has no threads and so may fork."""
    code = f"import sys, {function.__module__} as tests; tests.{function.__name__}(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=Path(sys.modules[function.__module__].__file__).parent, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def forked(work):
    """Start a function in a forked child; returns the child's id."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            work()
            sys.stdout.flush()
        except BaseException:  # noqa: BLE001 - a child must never go on with its parent's work
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def killed_at_every_step(work, prepare, check):
    """Prepare, kill `work` before its nth change of the file system, check; for n = 0, 1, ... until none is left."""

    def die_at(step):
        def hook(event, details):
            nonlocal step
            changing = event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR)
            if changing or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock"):
                step -= 1
                if step == -1:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    for step in count():
        prepare()
        _, status = os.waitpid(forked(lambda: (die_at(step), work())), 0)  # noqa: B023 - used at once
        assert status in (0, signal.SIGKILL), f"step {step}: {status}"
        try:
            check()
        except BaseException:
            print(f"killed at step {step}", file=sys.stderr)
            raise
        if status == 0:
            print(step)
            return


def names(folder):
    """Names in a folder, without the side files of rasters."""
    return {path.name for path in folder.iterdir() if not path.name.endswith((".aux.xml", ".qml", ".sld"))}
