"""Importing segkit changes nothing in the process of a host program."""

import json
import os
import subprocess
import sys

import pytest

# Set by lightning, torch and OpenCV themselves.
OF_LIBRARIES = {"PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR", "LD_LIBRARY_PATH"}
IMPORTS = """
import importlib, json, os, pkgutil
before = dict(os.environ)
import segkit

for name in segkit.__all__:
    getattr(segkit, name)
for module in pkgutil.walk_packages(segkit.__path__, "segkit."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = dict(os.environ)
print(json.dumps([name for name in {**before, **after} if before.get(name) != after.get(name)]))
"""
ALLOCATOR = """
import ctypes
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 2**27
start = resident()
block = libc.malloc(size)
ctypes.memset(block, 1, size)
full = resident()
libc.free(block)
print(full - start > 0.9 * size, resident() - start < 0.1 * size)
"""
CACHE = """
import rasterio.env
print(rasterio.env.get_gdal_config("GDAL_CACHEMAX") > 2**28)
"""


def output(script, **environment):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_", "GDAL_CACHE"))}
    own.pop("NO_ALBUMENTATIONS_UPDATE", None)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=own | environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def after_imports():
    """Lines of one process that imports all of segkit: changed variables, GDAL's cache, the allocator."""
    return output(IMPORTS + CACHE + (ALLOCATOR if sys.platform == "linux" else "")).splitlines()


def test_imports_leave_the_environment_as_it_was(after_imports):
    assert set(json.loads(after_imports[0])) <= OF_LIBRARIES


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_imports_leave_the_allocator_as_it_was(after_imports):
    """Large blocks are returned to the system as soon as they are freed."""
    assert after_imports[-1] == "True True"
    changed = "from segkit.runtime.memory import retain_freed_memory\nretain_freed_memory()\n" + ALLOCATOR
    assert output(changed).splitlines()[-1] != "True True"


def test_imports_leave_gdals_cache_as_it_was(after_imports):
    """By default GDAL takes 5 % of the memory, which is more than segkit's limit on any machine of 6 GB or more."""
    if output(CACHE) == "True\n":
        assert after_imports[1] == "True"


def test_a_check_of_training_data_and_a_network_load_neither_lightning_nor_numba():
    """These take seconds to import; errors of a recipe or of the data should not wait for them."""
    script = "import sys, segkit.training.train, segkit.inference.predict, segkit.inference.torch_runner\n"
    script += "print({'lightning', 'numba', 'scipy', 'segmentation_models_pytorch', 'pandas'} & set(sys.modules))"
    assert output(script) == "set()\n"


def test_predicting_an_exported_model_loads_no_torch():
    modules = (
        "cli.app", "inference.executor", "inference.forecasting", "inference.in_memory", "inference.runner",
        "inference.scene_job", "inference.streaming", "models.graph_model", "reporting.file_info",
    )  # fmt: skip
    script = "import sys\n" + "".join(f"import segkit.{module}\n" for module in modules)
    script += "print({'torch', 'safetensors', 'lightning', 'segmentation_models_pytorch'} & set(sys.modules))"
    assert output(script) == "set()\n"
