import pytest
from quick import skip_measurements, skip_pictures


@pytest.fixture(autouse=True)
def _tiny_trainings_are_quick(monkeypatch):
    """Fixtures of a wider scope are made before, so they measure and draw everything."""
    skip_measurements(monkeypatch.setattr)
    skip_pictures(monkeypatch.setattr)
