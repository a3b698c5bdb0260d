"""Say what to lower if a training runs out of memory."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segkit.errors import SegkitError, TrainingError, first_line, suggest
from segkit.inference.torch_runner import is_out_of_memory
from segkit.recipe.schema import Train
from segkit.training.resume import finished_epochs

# Messages of torch's loader: an error in a worker process, with its traceback; and a process that ended.
_WORKER_ERROR = re.compile(r"Caught \w+ in DataLoader worker process \d+\.")
# What a script needs where a new process is no fork: it first runs the script again.
GUARD = 'put the call under `if __name__ == "__main__":`'
_WORKER_ENDED = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed by|exited)")


@contextmanager
def explain_memory(settings: Train, folder: Path) -> Iterator[None]:
    """Turn errors for want of memory in the block into a `TrainingError`, and those of worker processes into a line.

    Parameters
    ----------
    folder
        The run folder.

    Raises
    ------
    TrainingError
        A device or a worker process ran out of memory, or the system ended a worker process.
    """
    try:
        yield
    except SegkitError as error:
        if _WORKER_ERROR.match(str(error)):
            raise type(error)(_reason(error)) from error
        raise
    except (MemoryError, RuntimeError) as error:
        if _WORKER_ENDED.search(str(error)):
            what = "the system ended a process that reads training tiles, mostly for want of memory"
            remedies = ["set a lower train.workers", "free some memory"]
            if multiprocessing.get_start_method() != "fork":
                remedies.append(f"in a script, {GUARD}")
        elif is_out_of_memory(error):
            side = settings.tile_size
            what = f"not enough memory to train on {settings.batch_size} tiles of {side} x {side} pixels at a time"
            what += f" ({_reason(error)})"
            remedies = ["set a lower train.batch_size or train.tile_size", "free some memory"]
        else:
            raise
        finished = finished_epochs(folder)
        kept = f"; epoch {finished} is kept" if finished else ""
        resume = suggest(f"resume after epoch {finished} (--resume)") if finished else ""
        raise TrainingError(what + kept + suggest(*remedies) + resume) from error


def _reason(error: BaseException) -> str:
    """Return the first line of an error's message; of one in a worker process, that below its traceback."""
    if _WORKER_ERROR.match(str(error)):
        _, _, reason = str(error).strip().splitlines()[-1].partition(": ")
        return reason or type(error).__name__
    return first_line(error)
