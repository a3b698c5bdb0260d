import numpy as np
import pytest
import torch
from exported import an_input, classical, moderate, predicted
from predicting import TASKS

from segkit.exporting.card import convert_nodata
from segkit.models.ensemble import Ensemble, with_imagery
from segkit.models.graph import ExportedGraph
from segkit.models.graph_outputs import join_outputs, output_names, split_outputs


def run(graph, pixels):
    with torch.inference_mode():
        return [output.numpy() for output in graph.eval()(torch.from_numpy(pixels))]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_the_graph_is_the_prediction(tmp_path, kind):
    model, pixels = moderate(tmp_path, kind), an_input()
    probabilities, expected = predicted(model, pixels)
    outputs = [torch.from_numpy(one) for one in run(ExportedGraph(model), pixels)]
    torch.testing.assert_close(join_outputs(model.task, outputs), probabilities, atol=1e-5, rtol=0)
    (values,) = run(ExportedGraph(model, decide=True), pixels)
    assert (values.dtype, values.shape) == (np.uint8, expected.shape)
    assert (values != expected).mean() < 1e-3
    assert len(np.unique(expected)) > 2


def test_an_ensemble_is_the_mean(tmp_path):
    ensemble, pixels = Ensemble([moderate(tmp_path, "binary", seed) for seed in (0, 300)]), an_input()
    (output,) = run(ExportedGraph(ensemble), pixels)
    np.testing.assert_allclose(output, predicted(ensemble, pixels)[0][:, 1:], atol=1e-5)


def test_no_data_values_are_nan_also_after_the_scaling_of_other_programs(tmp_path):
    model, pixels = moderate(tmp_path, "multiclass"), an_input()
    marked = np.where(np.isnan(pixels), np.float32(-9999) / 255 / np.float32(1 / 255), pixels)
    (expected,) = run(ExportedGraph(model), pixels)
    (found,) = run(ExportedGraph(model, [[0.0] * 3, [-9999.0] * 3]), marked)
    np.testing.assert_array_equal(found, expected)


def test_a_computed_band_is_data_where_it_has_the_no_data_value_and_alone_makes_no_pixel_valid(tmp_path):
    model = classical(tmp_path, "multiclass")
    index = {"name": "b", "formula": "x - y", "bands": {"x": 1, "y": 2}}
    model = with_imagery(model, {"indices": [index], "nodata": 0})
    pixels = an_input()
    pixels[:, 2, :20] = 0
    pixels[:, 2][np.isnan(pixels[:, :2]).any(axis=1)] = np.nan
    pixels[:, :2, 30:] = np.nan
    pixels[:, 2, 30:] = 510
    nodata = convert_nodata(model, [0])
    (found,) = run(ExportedGraph(model, nodata), pixels)
    np.testing.assert_allclose(found[:, :, :30], predicted(model, pixels)[0][:, :, :30], atol=1e-5)
    (values,) = run(ExportedGraph(model, nodata, decide=True), pixels)
    assert (values[:, :, 30:] == model.task.nodata).all()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.type} {task.head} {task.background}")
def test_outputs_are_split_and_joined(task):
    logits = torch.randn(2, task.channels, 5, 7, generator=torch.Generator().manual_seed(0))
    probabilities = task.probabilities(logits)
    outputs = split_outputs(task, probabilities)
    assert [output.shape[1] for output in outputs] == [len(names) for names in output_names(task)]
    torch.testing.assert_close(join_outputs(task, outputs), probabilities)
