import shutil
import tempfile
from pathlib import Path

import pytest
from environment import write_place


@pytest.fixture(scope="session")
def _written():
    with tempfile.TemporaryDirectory(prefix="segkit-faults-") as name:  # other users can read it
        Path(name).chmod(0o755)
        yield write_place(Path(name))


@pytest.fixture
def place(_written, monkeypatch):
    """A folder with the inputs of all commands, and an empty folder `out`; trainings draw no worst windows."""
    monkeypatch.setattr("segkit.training.results.draw_worst_windows", lambda *_, **__: None)
    yield _written
    shutil.rmtree(_written / "out")
    (_written / "out").mkdir()
