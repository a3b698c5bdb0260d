"""Dask workers that start at once: forked from a process that has imported what they need."""

import dask
import distributed  # its defaults come first, or they would go with what tests set
import fork_server


def forked_workers():
    """Return a context in which Dask's workers on this machine are forked."""
    settings = dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    distributed.utils.get_mp_context()  # sets modules of Dask's choice
    fork_server.name_imports()
    return settings
