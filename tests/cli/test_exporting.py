from segkit.cli.exporting import _print_export
from segkit.exporting.parity import Parity
from segkit.exporting.quantization import Quantization
from segkit.exporting.write import ExportSummary


def test_what_int8_changes_and_what_deepness_cannot_is_said(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(1_500_000))
    int8 = Quantization("int8", 0.9951, {"forest": 0.99, "ice": None}, {"onnxruntime": 0.9951}, 4, 2, 12_345)
    parity = Parity(2e-6, 4_000, "training pixels")
    outputs = {"probabilities": ["background", "forest"]}
    _print_export(ExportSummary(path, False, outputs, (-9999.0,), parity, ["it takes one output"], int8))
    assert capsys.readouterr().out.splitlines() == [
        "output probabilities: background, forest",
        "no data: NaN, -9999",
        "largest difference from segkit: 2.0e-06 in probability (4,000 pixels, training pixels)",
        "int8: 99.51% of 12,345 held-out pixels have the class of fp32 (4 tiles calibrated it, 2 are held out)",
        "  forest: 99.00%",
        "  ice: no pixels",
        "in Deepness (QGIS): it takes one output",
        "",
        f"{path}  1.5 MB",
    ]
