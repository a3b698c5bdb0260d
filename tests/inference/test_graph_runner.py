import numpy as np
import pytest
import torch
from torch.nn import functional

from segkit.inference import graph_runner
from segkit.inference.graph_runner import GraphRunner
from segkit.inference.runner_base import OutOfMemoryError
from segkit.inference.torch_runner import TorchRunner
from segkit.io.scene import Tile
from segkit.task import LandCoverClass, Task

TASK = Task("multiclass", (LandCoverClass("water", 1), LandCoverClass("forest", 2)))


class Model:
    """A network of two bands that sees to the right and below, as a model of torch and as a graph."""

    task, backend, sizes = TASK, "torch", ()

    def optimized_for_inference(self, device, precision):
        return self.logits

    def logits(self, pixels, valid):
        weight = torch.linspace(-2, 2, 3 * 2 * 9).sin().reshape(3, 2, 3, 3)
        return functional.conv2d(functional.pad(pixels.where(valid[:, None], 0.0), (0, 2, 0, 2)), weight)

    def probabilities(self, pixels, valid):
        self.sizes = (*self.sizes, len(pixels))
        given = (torch.tensor(one.copy()) for one in (pixels, valid))
        return TASK.probabilities(self.logits(*given)).numpy()


@pytest.fixture
def graph(monkeypatch):
    monkeypatch.setattr(graph_runner, "open_graph_model", lambda model, backend, precision, threads: model)
    return Model()


def tiles(count, height=12, width=20):
    random = np.random.default_rng(0)
    shape = height, width
    return [Tile(random.random((2, *shape), dtype=np.float32), random.random(shape) > 0.2) for _ in range(count)]


@pytest.mark.parametrize("options", [{}, {"tta": True, "model_entropies": True}], ids=["plain", "augmented"])
@pytest.mark.parametrize("count", [1, 3])
def test_probabilities_are_those_of_torch(graph, count, options):
    given = tiles(count)
    for tile in given:
        tile.pixels.setflags(write=False)
    runner = GraphRunner(graph, "fp32", "onnxruntime", **options)
    torch_runner = TorchRunner(graph, torch.device("cpu"), "fp32", **options)
    found, expected = runner(given), torch_runner(given).numpy()
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    assert runner.channel_names == torch_runner.channel_names
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_window_that_is_not_finite_is_nan_and_no_other(graph, monkeypatch):
    def spoilt(pixels, valid):
        found = Model.probabilities(graph, pixels, valid)
        found[1, 2, 3, 4] = np.inf
        return found

    monkeypatch.setattr(graph, "probabilities", spoilt, raising=False)
    found = GraphRunner(graph, "fp32", "onnxruntime")(tiles(3))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


def test_a_batch_that_memory_does_not_hold_is_halved(graph, monkeypatch):
    least = 2

    def scarce(pixels, valid):
        found = Model.probabilities(graph, pixels, valid)
        if len(pixels) > least:
            raise MemoryError
        return found

    expected = GraphRunner(Model(), "fp32", "onnxruntime")(tiles(5))
    monkeypatch.setattr(graph, "probabilities", scarce, raising=False)
    runner = GraphRunner(graph, "fp32", "onnxruntime")
    np.testing.assert_allclose(runner(tiles(5)), expected, rtol=0, atol=1e-6)
    assert graph.sizes == (5, 2, 2, 1)
    least = 0
    with pytest.raises(OutOfMemoryError, match="a window of 12 x 20 pixels does not fit into the memory of the cpu"):
        runner(tiles(1))
