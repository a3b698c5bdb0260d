"""A prediction of two scenes with all outputs, in many row bands, by a process with or without torch."""

from pathlib import Path
from unittest import mock

from segkit.inference import tiling
from segkit.inference.predict import predict

KINDS = ("map", "probabilities", "confidence", "applicability")


def predict_all(folder):
    """Predict `s.tif` and `t.tif` with `m.onnx` into a folder for each output; return how many bands were resumed."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    map_, probabilities, confidence, applicability = (folder / kind for kind in KINDS)
    with mock.patch.object(tiling, "_MIN_BAND_PIXELS", 1):
        done = predict(
            "m.onnx",
            ["s.tif", "t.tif"],
            map_,
            probabilities=probabilities,
            confidence=confidence,
            applicability=applicability,
            uncertainty=["entropy", "margin"],
            tile=32,
            overlap=8,
        )
    return [summary.resumed for summary in done]
