from contextlib import suppress

import numpy as np
import pytest

from segkit.errors import MissingFileError, ModelFileError
from segkit.models import onnx_file
from segkit.models.onnx_file import read_onnx_metadata

onnx = pytest.importorskip("onnx")
helper, numpy_helper = pytest.importorskip("onnx.helper"), pytest.importorskip("onnx.numpy_helper")


def external(name="w"):
    """A tensor whose numbers are in another file."""
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    return tensor


def a_model(metadata=(), initializers=(), nodes=(), functions=()):
    inside = numpy_helper.from_array(np.arange(300, dtype=np.float32), "inside")
    graph = helper.make_graph(list(nodes), "g", [], [], [inside, *initializers])
    model = helper.make_model(graph, functions=list(functions))
    helper.set_model_props(model, dict(metadata))
    return model


def saved(folder, model):
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_metadata_are_those_that_onnx_reads(tmp_path):
    metadata = {"a": "1", "segkit": "é" * 1000, "empty": ""}
    assert read_onnx_metadata(saved(tmp_path, a_model(metadata))) == metadata


def inner(*tensors, nodes=()):
    return helper.make_graph(list(nodes), "inner", [], [], list(tensors))


def branch(graph):
    return helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=inner())


SPARSE = onnx.SparseTensorProto(values=external(), dims=[3])
CONSTANT = helper.make_node("Constant", [], ["y"], value=external())


@pytest.mark.parametrize(
    "content",
    [
        {"initializers": [external()]},
        {"nodes": [CONSTANT]},
        {"nodes": [branch(inner(external()))]},
        {"nodes": [branch(inner(nodes=[branch(inner(nodes=[CONSTANT]))]))]},
        {"nodes": [helper.make_node("Constant", [], ["y"], sparse_value=SPARSE)]},
        {"functions": [helper.make_function("d", "f", [], ["y"], [CONSTANT], [])]},
    ],
    ids=["initializer", "constant", "branch", "branch of a branch", "sparse", "function"],
)
def test_weights_in_other_files_are_refused_wherever_they_are(tmp_path, content):
    with pytest.raises(ModelFileError, match="its weights are in other files"):
        read_onnx_metadata(saved(tmp_path, a_model(**content)))


def test_a_location_alone_is_refused_and_one_inside_is_not(tmp_path):
    tensor = external()
    tensor.ClearField("external_data")
    with pytest.raises(ModelFileError, match="in other files"):
        read_onnx_metadata(saved(tmp_path, a_model(initializers=[tensor])))
    tensor.data_location = onnx.TensorProto.DEFAULT
    assert read_onnx_metadata(saved(tmp_path, a_model(initializers=[tensor]))) == {}


def test_long_metadata_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_MAX_METADATA_BYTES", 1000)
    path = saved(tmp_path, a_model({"a": "b" * 500, "c": "d" * 500}))
    with pytest.raises(ModelFileError, match="metadata take more than"):
        read_onnx_metadata(path)


def test_damaged_files_are_read_or_refused_but_nothing_else_happens(tmp_path):
    content = a_model({"a": "1"}, nodes=[branch(inner())]).SerializeToString()[:400]
    random = np.random.default_rng(0)
    changed = [bytes(random.integers(0, 256, 200, dtype=np.uint8)) for _ in range(100)]
    for at in range(0, len(content), 7):
        changed += [content[:at], content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]]
    read = []
    for one in changed:
        (tmp_path / "m.onnx").write_bytes(one)
        with suppress(ModelFileError):
            read.append(read_onnx_metadata(tmp_path / "m.onnx"))
    assert len(read) < len(changed) / 2


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="is a folder"):
        read_onnx_metadata(tmp_path)
    with pytest.raises(MissingFileError):
        read_onnx_metadata(tmp_path / "no.onnx")
