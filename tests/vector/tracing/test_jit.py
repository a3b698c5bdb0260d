import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import pytest
from numba.core import caching

import segkit
from segkit.vector.tracing.jit import compiled


def add(one, other):
    return one + other


@pytest.fixture
def only_temporary(monkeypatch, tmp_path):
    """Nothing can be written but the folder for temporary files."""
    ensure = caching._CacheLocator.ensure_cache_path

    def limited(locator):
        if not locator.get_cache_path().startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied")
        ensure(locator)

    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", limited)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_compiled_functions_are_kept_where_one_may_write(only_temporary):
    before = numba.config.CACHE_DIR
    assert compiled(add)(1, 2) == 3
    assert list(only_temporary.rglob("*.nbc"))
    assert before == numba.config.CACHE_DIR
    again = compiled(add)
    assert again(1, 2) == 3
    assert again.stats.cache_hits


def test_functions_are_compiled_where_nothing_can_be_written(only_temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(only_temporary / "gone"))
    assert compiled(add)(1, 2) == 3


def test_a_disk_that_is_full_stops_no_compiled_function(only_temporary, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert compiled(add)(1, 2) == 3
    assert not list(only_temporary.rglob("*.nbc"))


def test_a_cache_of_other_sources_is_not_unpickled(only_temporary):
    """It may name types that no longer exist."""
    assert compiled(add)(1, 2) == 3
    for index in only_temporary.rglob("*.nbi"):
        with index.open("rb") as file:
            version = pickle.load(file)
        index.write_bytes(pickle.dumps(f"{version} before") + b"cnowhere\nGone\n.")
    again = compiled(add)
    assert again(1, 2) == 3
    assert again.stats.cache_misses


AS_ANOTHER = """
import os, sys
assert os.getuid() == 65534 and not os.access("/", os.W_OK)
from segkit.cli import app as cli
cli._find_folders()
import matplotlib
matplotlib.get_cachedir(), matplotlib.get_configdir()
from segkit.vector.tracing.jit import compiled
from segkit.data.cache import cache_folder
print(compiled(cache_folder)._cache.cache_path, cache_folder())
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may become somebody else")
def test_another_user_without_a_home_can_use_all_of_it():
    # The interpreter may lie in root's home: what is open needs no right to get there.
    there = os.open(sys.base_prefix, os.O_RDONLY)
    prefix = f"/proc/self/fd/{there}"
    temporary = tempfile.mkdtemp(prefix="segkit-test-", dir="/tmp")
    Path(temporary).chmod(0o1777)
    paths = [str(Path(segkit.__file__).parents[1]), *(path for path in sys.path if path.endswith("site-packages"))]
    environment = {"PYTHONHOME": prefix, "LD_LIBRARY_PATH": f"{prefix}/lib", "PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"TMPDIR": temporary, "OMP_NUM_THREADS": "1", "HOME": "/"}
    program = f"{prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    try:
        done = subprocess.run(
            [program, "-c", AS_ANOTHER], user=65534, group=65534, extra_groups=[], pass_fds=[there], env=environment,
            cwd="/", capture_output=True, text=True, check=False,
        )  # fmt: skip
    except PermissionError:
        pytest.skip("this system lets root be nobody else")
    finally:
        os.close(there)
        subprocess.run(["rm", "-rf", temporary], check=True)
    assert (done.returncode, done.stderr) == (0, "")
    kept, decoded = done.stdout.split()
    assert kept.startswith(f"{temporary}/segkit-65534/numba/")
    assert decoded.endswith("/.cache/segkit")
