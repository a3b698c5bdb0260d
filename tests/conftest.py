"""What several test files need. Tests run side by side (pytest -n), so each process computes in one thread."""

import gc
import math
import os
import signal
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, settings
from places import HELPERS, SHARED, UTM

# How fast the machine is says nothing about the code.
settings.register_profile("segkit", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("segkit")

# Processes that tests start import the same helpers.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HELPERS), os.environ.get("PYTHONPATH"))))

# A shell that starts tests in the background makes them ignore Ctrl-C, and nohup SIGHUP; and with them the commands
# that they stop so.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure():
    gc.disable()


def pytest_collection_finish():
    """Leave the objects of imports out of garbage collection, which would take a tenth of the time."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # else nanobind takes the functions of triton for leaks


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks():
    """Tests need no data on the disk after a power failure; that files are synced is tested by a call of `os.fsync`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _ample_memory():
    """With little memory, each prediction measures its network first; tests of that set the memory themselves."""
    with pytest.MonkeyPatch.context() as patch:
        if "segkit.inference.settings" in sys.modules:  # else no test here predicts
            patch.setattr("segkit.inference.settings.available_memory", lambda device: 2**40)
        yield


@pytest.fixture(scope="session", autouse=True)
def _receptive_fields_are_measured_once():
    """A measurement takes a second; networks of one architecture have the same receptive field."""
    with pytest.MonkeyPatch.context() as patch:
        if "segkit.models.segmenter" in sys.modules:
            from quick import measure_once

            patch.setattr("segkit.models.segmenter.measure_receptive_field", measure_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_lines_of_progress():
    """How fast the machine is must not show in what a command prints; test_progress.py has a clock of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segkit.runtime.progress._LINE_INTERVAL_S", math.inf)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_line_about_libraries():
    """Whether torch is loaded already depends on the tests before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segkit.cli.app._FIRST_LIBRARIES", frozenset())
        yield


@pytest.fixture
def shared():
    """The folder of real imagery, beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here")
    return SHARED


@pytest.fixture
def write_raster(tmp_path):
    """Write an array (H, W) or (bands, H, W) as a GeoTIFF in tmp_path; returns its path."""

    def write(name, array, *, crs="EPSG:32622", transform=UTM, mask=None, colorinterp=None, **profile):
        bands = np.reshape(array, (-1, *np.shape(array)[-2:]))
        profile = {"driver": "GTiff", "dtype": bands.dtype, "crs": crs, "transform": transform} | profile
        count, height, width = bands.shape
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(tmp_path / name, "w", count=count, height=height, width=width, **profile) as dataset,
        ):
            if colorinterp:
                dataset.colorinterp = colorinterp
            dataset.write(bands)
            if mask is not None:
                dataset.write_mask(mask)
        return tmp_path / name

    return write
