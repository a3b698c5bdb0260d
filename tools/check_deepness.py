"""Check that an exported model works in the QGIS plugin Deepness, and compare a map made by its rules with segkit's.

    segkit export MODEL -o model.onnx --tile 256
    .venv/bin/python tools/check_deepness.py model.onnx MODEL SCENE...

The rules are those of Deepness's source (github.com/PUTvision/qgis-plugin-deepness): which metadata it reads and
how (`model_base.py`, `segmentor.py`), how it prepares pixels (`preprocessing_utils.py`), lays tiles (`extent_utils.py`,
`tile_params.py`), and decides (`map_processor_segmentation.py`). It does not blend: each pixel comes from one tile.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import rasterio

import segkit

NUMBERS = ("resolution", "tile_size", "tiles_overlap", "seg_thresh", "seg_small_segment")


def read_model(path: Path) -> tuple[onnxruntime.InferenceSession, dict]:
    """Load a model as Deepness does; raise what it would raise."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_modelmeta().custom_metadata_map
    assert len(session.get_inputs()) == 1, "unsupported number of inputs"
    found = {name: float(json.loads(given[name])) for name in NUMBERS if name in given}
    found["model_type"] = str(json.loads(given["model_type"])).capitalize()
    assert found["model_type"] == "Segmentor", found["model_type"]
    names = json.loads(given["class_names"])
    found["names"] = []
    for output, of in zip(session.get_outputs(), names if isinstance(names, list) else [names], strict=True):
        assert len(output.shape) == 4, f"output should have 4 dimensions: {output.shape}"
        assert output.shape[2] == output.shape[3], f"only square masks: {output.shape}"
        assert sorted(map(int, of)) == list(range(output.shape[1])), f"class names are not consecutive: {of}"
        found["names"].append([of[str(k)] for k in range(output.shape[1])])
    for name in ("standardization_mean", "standardization_std"):
        found[name] = np.array(json.loads(given[name]), dtype=np.float32)
    size = int(found["tile_size"])
    assert session.get_inputs()[0].shape[-2:] == [size, size], "tile size differs from the input"
    return session, found


def make_map(session: onnxruntime.InferenceSession, found: dict, image: np.ndarray) -> np.ndarray:
    """Return the number of each pixel's class in each output, int64 (outputs, rows, columns).

    Of an image (bands, rows, columns), by Deepness's tiles and decision.
    """
    size = int(found["tile_size"])
    overlap = int(size * found["tiles_overlap"] / 100) // 2 * 2
    stride, half = size - overlap, overlap // 2
    bands, rows, columns = image.shape
    # The area is extended to the right and upwards to whole tiles.
    extended = [side + (size - side if side <= size else -(side - size) % stride) for side in (rows, columns)]
    padded = np.zeros((bands, *extended), dtype=image.dtype)
    padded[:, extended[0] - rows :, :columns] = image
    result = np.zeros((len(found["names"]), *extended), dtype=np.int64)
    counts = [(side - size) // stride + 1 for side in extended]
    for down in range(counts[0]):
        for right in range(counts[1]):
            top, left = down * stride, right * stride
            tile = np.float32(padded[:, top : top + size, left : left + size] / 255.0)
            tile = (tile - found["standardization_mean"][:, None, None]) / found["standardization_std"][:, None, None]
            outputs = session.run(None, {session.get_inputs()[0].name: tile[None].astype(np.float32)})
            for output in outputs:
                output[output < found["seg_thresh"]] = 0
            classes = np.stack([(one[0, 0] != 0) if one.shape[1] == 1 else one[0].argmax(axis=0) for one in outputs])
            first = [0 if at == 0 else half for at in (down, right)]
            last = [size if at == count - 1 else size - half for at, count in zip((down, right), counts, strict=True)]
            part = (slice(None), *(slice(*ends) for ends in zip(first, last, strict=True)))
            result[:, top : top + size, left : left + size][part] = classes[part]
    return result[:, extended[0] - rows :, :columns]


def main() -> int:
    """Check a model; compare maps of scenes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exported", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("scenes", type=Path, nargs="*")
    given = parser.parse_args()
    session, found = read_model(given.exported)
    print({key: value for key, value in found.items() if not key.startswith("standardization")})
    same = pixels = 0
    for path in given.scenes:
        with rasterio.open(path) as dataset:
            image = dataset.read()
        ours = segkit.predict(given.model, image)
        numbers = make_map(session, found, image)
        values = np.array(ours.task.category_values) if len(numbers) == 1 else np.arange(2)
        theirs, ours = values[numbers].squeeze(), ours.map
        same, pixels = same + np.count_nonzero(ours == theirs), pixels + ours.size
        print(f"{path.name}: {100 * np.mean(ours == theirs):.4f} % of {ours.size:,} pixels have the same class")
    if pixels:
        print(f"all: {100 * same / pixels:.4f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
