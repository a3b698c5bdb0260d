"""Models to export, and what segkit itself predicts with them."""

import json

import numpy as np
import torch
from synthetic import segmenter

from segkit.exporting.card import make_card
from segkit.inference.torch_runner import TorchRunner
from segkit.io.scene import Tile
from segkit.models.calibration import Calibration
from segkit.models.graph_outputs import CARD_KEY
from segkit.models.segmenter import Segmenter
from segkit.recipe.schema import Recipe


def moderate(folder, kind, shift=0):
    """Return an untrained network whose probabilities are not all 0 or 1; `shift` makes others."""
    model = segmenter(folder, kind, mean=[500.0 + shift, 510.0, 520.0])
    platt = 0.1 * (kind != "multiclass")
    model.set_calibration(Calibration((1e-3,) * model.task.channels, (platt,) * model.task.channels))
    model._receptive_field = 40  # takes a second to measure
    return model


def classical(folder, kind="binary", architecture="lda", bands=3, **features):
    """Return a classical learner, with random numbers if it is lda."""
    raw = segmenter(folder, kind).recipe.to_dict()
    raw["model"] = {"architecture": architecture, "features": features or None}
    model = Segmenter(Recipe.from_dict(raw), [500.0] * bands, [50.0] * bands, list("rgb")[:bands]).eval()
    random = np.random.default_rng(0)
    for learner in model.network.learners if architecture == "lda" else ():
        shape = learner.categories, learner.features
        learner.set_arrays(weight=random.normal(size=shape), bias=random.normal(size=shape[0]))
    return model


def an_input(height=37, width=45):
    """Return pixels (2, 3, height, width), a tenth of them NaN, and more in one band."""
    random = np.random.default_rng(0)
    pixels = random.normal(510, 50, (2, 3, height, width)).astype(np.float32)
    pixels[:, :, random.random((height, width)) < 0.1] = np.nan
    pixels[:, 1, random.random((height, width)) < 0.1] = np.nan
    return pixels


def predicted(model, pixels):
    """Return the probabilities, and the values of the map, by segkit's own prediction."""
    valid = ~np.isnan(pixels).all(axis=1)
    tiles = [Tile(*one) for one in zip(pixels, valid, strict=True)]
    probabilities = TorchRunner(model, torch.device("cpu"), "fp32")(tiles)
    decided = zip(model.task.decide(probabilities).numpy(), valid, strict=True)
    return probabilities, np.stack([model.task.map_values(*one) for one in decided])


def write_graph(path, model):
    """Write an ONNX file with the card of a model of several exclusive classes and a graph of a single convolution.

    It takes a fraction of the time of an export.
    """
    import onnx
    from onnx import TensorProto, helper

    random, shape = np.random.default_rng(0), (model.task.channels, model.bands, 3, 3)
    weights = {"weight": random.normal(size=shape) / 200, "mean": np.array(500.0)}
    tensors = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    nodes = [
        helper.make_node("IsNaN", ["pixels"], ["missing"]),
        helper.make_node("Where", ["missing", "mean", "pixels"], ["filled"]),
        helper.make_node("Sub", ["filled", "mean"], ["centred"]),
        helper.make_node("Conv", ["centred", "weight"], ["logits"], pads=[1, 1, 1, 1]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    given, found = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count, "height", "width"])
        for name, count in (("pixels", model.bands), ("probabilities", model.task.channels))
    )
    graph = helper.make_graph(nodes, "graph", [given], [found], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    card = make_card(model, (), decide=False, tile=None, least=1)
    helper.set_model_props(proto, {CARD_KEY: json.dumps(card)})
    onnx.save(proto, path)
