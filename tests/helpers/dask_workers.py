"""Dask workers that start at once: forked from a process that has imported what they need."""

import multiprocessing

import dask
import distributed  # its defaults come first, or they would go with what tests set


def forked_workers():
    """Return a context in which Dask's workers on this machine are forked."""
    settings = dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    distributed.utils.get_mp_context()  # sets modules of Dask's choice
    imported = ["distributed", "segkit.inference.tasks", "segmentation_models_pytorch"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(imported)
    return settings
