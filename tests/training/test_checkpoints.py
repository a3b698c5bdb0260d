import gc
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from segkit.errors import OutputError
from segkit.training.checkpoints import AtomicCheckpoints


def test_a_checkpoint_is_whole_or_the_one_before_and_goes_through_no_other_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))  # as on another disk, which may be full
    path = tmp_path / "checkpoints" / "last.ckpt"
    for value in (1, 2):
        AtomicCheckpoints().save_checkpoint({"epoch": value}, path)
        assert torch.load(path, weights_only=True) == {"epoch": value}

    def full(file, content):
        with Path(file).open("wb") as half:
            half.write(content[:20])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with pytest.raises(OutputError, match=r"last\.ckpt could not be written: No space left on device") as caught:
        AtomicCheckpoints().save_checkpoint({"epoch": 3}, path)
    caught.value.itself = caught.value  # so that it is the garbage collector that frees its traceback
    del caught
    gc.collect()  # crashes Python 3.12.1 if the traceback holds a part of the buffer
    assert BufferError not in [each.exc_type for each in unraisable]  # others are of tests before
    assert torch.load(path, weights_only=True) == {"epoch": 2}
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]
