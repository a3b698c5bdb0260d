import gc

import pytest

from segkit.runtime.garbage_collection import pause_collection


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_paused_and_then_as_it_was_before(enabled):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pause_collection():
            paused = not gc.isenabled()
        after = gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()
    assert paused
    assert after == enabled


def test_collection_goes_on_after_an_import_that_fails():
    with pytest.raises(ModuleNotFoundError), pause_collection():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
