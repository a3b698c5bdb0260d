"""Skip what takes most of the time of a tiny training, and is checked by tests of its own."""

from types import SimpleNamespace

from segkit.exporting.quantization import quantize_graph
from segkit.models.receptive_field import measure_receptive_field

_radii = {}


def skip_measurements(patch):
    """Predict in fp32, as on a machine without bf16, and measure the receptive field once for an architecture.

    Parameters
    ----------
    patch
        Called with a dotted name and its replacement, like pytest's `monkeypatch.setattr`.
    """
    patch("segkit.inference.device._has_bf16", lambda device: False)
    patch("segkit.exporting.write.quantize_graph", _quantize_anyhow)
    patch("segkit.models.segmenter.measure_receptive_field", measure_once)


def skip_pictures(patch):
    """Do not draw curves.png and worst.png; see `skip_measurements`."""
    patch("segkit.training.results.draw_worst_windows", lambda *_, **__: None)
    patch("segkit.training.results.training_curves", SimpleNamespace(curves=lambda log, epoch: f"{log} {epoch}"))
    patch("segkit.training.results.style", SimpleNamespace(write_png=lambda text, path: path.write_text(text)))


def skip_drawing_of_pages(patch):
    """Make the figures of reports, but neither render nor encode them; see `skip_measurements`."""
    patch("segkit.reporting.html.to_svg", lambda figure: "<svg></svg>")
    patch("segkit.reporting.html._data_uri", lambda picture: "data:,")


def _quantize_anyhow(model, path, tiles, *, min_agreement):
    """What a tiny training decides may change with the last bit."""
    return quantize_graph(model, path, tiles, min_agreement=0)


def measure_once(network, stride, bands):
    """Measure the receptive field of an architecture that is new, and of networks that tests put together."""
    if not type(network).__module__.startswith("segmentation_models_pytorch."):
        return measure_receptive_field(network, stride, bands)
    key = str(network), stride, bands
    if key not in _radii:
        _radii[key] = measure_receptive_field(network, stride, bands)
    return _radii[key]
