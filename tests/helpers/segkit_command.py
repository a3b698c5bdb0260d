"""`segkit train` in processes that start at once, and records what they do."""

import os
import signal
import sys
from unittest import mock

import fork_server
from quick import skip_measurements

from segkit.cli import main
from segkit.data.datasets import TrainDataset
from segkit.training.module import TrainingModule

# For further processes of one training, which Lightning starts.
SCRIPT = "import segkit_command; segkit_command.run()"


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


def _run_with(arguments):
    sys.argv = list(arguments)
    run()


def start(folder, *arguments, **environment):
    """Start the command in a folder; see `fork_server.start`."""
    return fork_server.start(_run_with, arguments, folder=folder, **environment)
