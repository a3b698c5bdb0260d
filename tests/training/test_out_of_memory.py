import multiprocessing

import pytest
import torch
from synthetic import recipe_for

from segkit.errors import RasterError, TrainingError, UsageError
from segkit.training import out_of_memory
from segkit.training.out_of_memory import explain_memory
from segkit.training.train import train

IN_WORKER = "Caught {} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n{}: {}"
SMALLER = r"of 32 x 32 pixels .*lower train\.batch_size or train\.tile_size"


def explain(tmp_path, error):
    with explain_memory(recipe_for(tmp_path, "binary").train, tmp_path):
        raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), SMALLER),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), SMALLER),
        (MemoryError(), SMALLER),
        (MemoryError(IN_WORKER.format("MemoryError", "MemoryError", "no room")), rf"\(no room\).*{SMALLER[-20:]}"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), r"ended .* a lower train\.workers"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), r"ended .* a lower train\.workers"),
    ],
)
def test_it_is_said_what_to_lower_and_what_is_kept(tmp_path, monkeypatch, error, message):
    with pytest.raises(TrainingError, match=message) as caught:
        explain(tmp_path, error)
    assert "kept" not in str(caught.value)
    assert str(caught.value).count("\n") == 0
    monkeypatch.setattr(out_of_memory, "finished_epochs", lambda folder: 3)
    with pytest.raises(TrainingError, match=rf"{message}.*") as caught:
        explain(tmp_path, error)
    assert "; epoch 3 is kept; " in str(caught.value)
    assert "resume after epoch 3 (--resume)" in str(caught.value)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_script_without_a_guard_is_named_where_workers_run_it_again(tmp_path, monkeypatch, method):
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: method)
    with pytest.raises(TrainingError) as caught:
        explain(tmp_path, RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"))
    assert ("__main__" in str(caught.value)) == (method != "fork")
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UsageError, match=r"put the call under `if __name__ == .__main__.:`"):
        train(recipe_for(tmp_path, "binary"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_of_a_worker_is_that_of_the_file_without_a_traceback(tmp_path):
    said = "segkit.errors.RasterError", "a.tif: cannot be read at rows 1 to 2"
    with pytest.raises(RasterError) as caught:
        explain(tmp_path, RasterError(IN_WORKER.format("RasterError", *said)))
    assert str(caught.value) == said[1]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), RasterError("a.tif: damaged"), KeyError("x")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        explain(tmp_path, error)
    assert caught.value is error
