"""Devices that the machine of a test need not have: stand-ins for what torch says about them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from segkit.errors import UsageError
from segkit.inference.blending import fetch_async
from segkit.inference.device import available_memory, pick_device, pick_precision
from segkit.inference.settings import PredictOptions
from segkit.inference.torch_runner import can_compile


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def apple(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.usefixtures("two_gpus")
def test_cuda_is_chosen_where_it_is_and_each_device_by_its_number():
    assert pick_device("auto").type == "cuda"
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match=r"'cuda:2' was asked for, but torch finds 2 CUDA devices"):
        pick_device("cuda:2")


@pytest.mark.usefixtures("apple")
def test_an_apple_gpu_is_a_device_that_is_asked_for_and_computes_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    mps = pick_device("mps")
    assert mps.type == "mps"
    assert pick_precision("auto", mps) == "fp32"
    assert not can_compile(mps)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 700)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 300)
    assert available_memory(mps) == 400


def test_an_apple_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="torch finds no Apple GPU; use cpu or auto"):
        pick_device("mps")


@pytest.mark.usefixtures("apple")
def test_classical_learners_are_refused_on_an_apple_gpu():
    model = SimpleNamespace(is_classical=True, pixel_branch=None, backend="torch")
    with pytest.raises(UsageError, match="float64, which mps does not; compute on the CPU"):
        PredictOptions(device="mps").check(model)


class OnGpu(Tensor):
    """A tensor in main memory that says it lies on the second GPU."""

    is_cuda = True
    device = torch.device("cuda", 1)


class Event:
    """A CUDA event: the copies before it are there only after it was waited for on the stream of their device."""

    def __init__(self, log):
        self.log = log

    def record(self, stream=None):
        self.log.append(("record", stream))

    def synchronize(self):
        self.log.append("wait")


def test_results_are_copied_to_pinned_memory_without_waiting_until_they_are_read(monkeypatch):
    log, empty = [], torch.empty

    def pinned(*arguments, pin_memory=False, **keywords):
        log.append(("pinned", pin_memory))
        return empty(*arguments, **keywords)

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "Event", lambda: Event(log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    values = torch.arange(6.0).reshape(2, 3)
    wait = fetch_async({"a": values.as_subclass(OnGpu)})
    assert log == [("pinned", True), ("record", "stream of cuda:1")]
    np.testing.assert_array_equal(wait()["a"], values.numpy())
    assert log[-1] == "wait"
