"""`segkit train` in processes that are forked from one that has imported everything, which takes most of the time."""

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
from unittest import mock

import segmentation_models_pytorch  # noqa: F401 - imported here for all processes
from quick import skip_measurements

from segkit.cli import main
from segkit.data.datasets import TrainDataset
from segkit.training.module import TrainingModule

# For further processes of one training, which Lightning starts.
SCRIPT = "import segkit_command; segkit_command.run()"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["halves", "segkit_command"])


def run():
    """Run the command; record which crops the process draws, and kill it before the second epoch if STRIKE is set."""
    skip_measurements(lambda name, replacement: mock.patch(name, replacement).start())
    path = f"crops-{os.environ.get('NODE_RANK', '0')}-{os.environ.get('LOCAL_RANK', '0')}"
    original = TrainDataset.__getitem__
    if os.environ.get("STRIKE"):
        TrainingModule.on_train_epoch_start = lambda self: self.current_epoch and os.kill(os.getpid(), signal.SIGKILL)
    with open(path, "a") as drawn:  # noqa: PTH123 - relative to the process's folder

        def recorded(tiles, number):
            print(number, file=drawn, flush=True)
            return original(tiles, number)

        TrainDataset.__getitem__ = recorded
        main()


def _run_in(folder, arguments, environment):
    os.chdir(folder)
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may have changed
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with (folder / f"{name}.txt").open("w") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = list(arguments)
    try:
        run()
    finally:
        atexit._run_exitfuncs()  # multiprocessing does not


def start(folder, *arguments, **environment):
    """Start the command in a folder, where its output goes to stdout.txt and stderr.txt; return the process."""
    process = SERVER.Process(target=_run_in, args=(folder, arguments, environment))
    process.start()
    return process
