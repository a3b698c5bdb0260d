"""Processes that start at once: forked from one that has imported what takes most of the time.

The server starts with the first process, and there is one per test process.
"""

import atexit
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
_IMPORTED = (
    "distributed",
    "halves",
    "pytest",
    "segkit_command",
    "segkit.inference.predict",
    "segkit.inference.tasks",
    "segkit.training.fitting",
    "segkit.training.train",
    "segmentation_models_pytorch",
    "sklearn.metrics",
)


def name_imports():
    """Say what the server imports; again after others, such as Dask, did so for themselves."""
    SERVER.set_forkserver_preload(list(_IMPORTED))


def start(function, *arguments, folder, **environment):
    """Call a function in a new process with a folder and variables of its own; returns the process.

    What it prints goes to stdout.txt and stderr.txt in the folder.
    """
    process = SERVER.Process(target=_call, args=(function, arguments, folder, dict(os.environ) | environment))
    process.start()
    return process


def run(function, *arguments):
    """Call a function in a new process, which has no threads and so may fork; `killing.alone` starts a smaller one."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(function, *arguments, folder=Path(folder))
        process.join(600)
        assert process.exitcode == 0, Path(folder, "stderr.txt").read_text()


def _call(function, arguments, folder, environment):
    os.environ.clear()  # the server's is older
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None  # TMPDIR may have changed
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with Path(f"{name}.txt").open("w") as file:
            os.dup2(file.fileno(), descriptor)
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing does not
        sys.stdout.flush()


name_imports()
