"""The interactive map of a report: scenes with layers, in a page that works offline.

Pixels are embedded as data: the image as a JPEG, pixel states and confidence deflated. States do not pass through a
canvas, since browsers may add noise to canvas data against fingerprinting. `viewer.js` unpacks the selected scene and
passes its layers to Bokeh.

Wheel and one finger scroll the page, also over the map; Ctrl + wheel, or two fingers, zoom the map. The wheel alone
zooms while the map has the focus, that is after a click or a drag.
"""

from __future__ import annotations

import base64
import html
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import shapely
from numpy.typing import NDArray

from segkit.errors import GridError
from segkit.io.grid import Grid, crs_name
from segkit.plots.text import UNDEFINED, format_hectares, format_percent

if TYPE_CHECKING:
    from bokeh.models import Plot
    from geopandas import GeoDataFrame

NODATA, UNLABELLED, FIRST_STATE = 0, 1, 2
"""Codes in `SceneLayers.truth` and `SceneLayers.decided`; the code of a state is `FIRST_STATE` + its index."""

UNLABELLED_COLOR, ERROR_COLOR, DEFAULT_COLOR = "#9e9e9e", "#ff00aa", "#333333"  # errors in a colour of no class
_JPEG_QUALITY_PERCENT = 88
_NO_CONFIDENCE = 255  # code of pixels without confidence, which is stored in percent
_STEPS_PER_PIXEL = 10  # resolution of polygon coordinates
# {layer: (label, visible at first)}
_LAYERS = {
    "image": ("Image", True),
    "prediction": ("Prediction", True),
    "truth": ("Truth", False),
    "confidence": ("Confidence", False),
    "errors": ("Errors", False),
    "polygons": ("Polygons", True),
}


@dataclass(frozen=True)
class PixelState:
    """A class, or a combination of overlapping classes, that a pixel of truth or prediction can have.

    Parameters
    ----------
    name
        For example "forest", "water + built up" (overlapping classes) or "background".
    color
        "#rrggbb".
    background
        Whether it means that no class is present; it is transparent over an image.
    """

    name: str
    color: str
    background: bool = False


@dataclass(frozen=True)
class SceneLayers:
    """The layers of one scene in the map.

    Parameters
    ----------
    title
        Its entry in the list of scenes.
    grid
        Grid of the layers, H x W.
    image
        uint8 (H, W, 3).
    valid
        bool (H, W): False at nodata pixels.
    truth, decided
        uint16 (H, W): `NODATA` (nodata or outside of the predicted area), `UNLABELLED`, or `FIRST_STATE` + the index of
        a state.
    confidence
        float32 (H, W) in 0..1, NaN if undefined.
    polygons
        In the grid's CRS, with the columns `class`, `area_ha` and optionally `mean_conf`.
    note
        Text below the map.
    """

    title: str
    grid: Grid
    image: NDArray[np.uint8] | None
    valid: NDArray[np.bool_]
    truth: NDArray[np.uint16] | None
    decided: NDArray[np.uint16] | None
    confidence: NDArray[np.float32] | None
    polygons: GeoDataFrame | None
    note: str = ""

    def __post_init__(self) -> None:
        for layer in (self.valid, self.truth, self.decided, self.confidence):
            assert layer is None or layer.shape == self.grid.shape
        assert self.image is None or self.image.shape == (*self.grid.shape, 3)


def render_viewer(scenes: Sequence[SceneLayers], states: Sequence[PixelState]) -> str:
    """Return the map of some scenes as an HTML fragment: controls, map, readout and legend.

    The page must contain `bokeh_scripts` once, anywhere. Names, titles and notes are escaped.
    """
    assert scenes
    setup = {
        "plot": _plot_json(),
        "states": [asdict(state) for state in (PixelState("unlabelled", UNLABELLED_COLOR), *states)],
        "errorColor": ERROR_COLOR,
        "cividis": _cividis(),
    }
    colors = {state.name: state.color for state in states}
    data = [
        _json_script("map-setup", setup),
        *(_json_script("map-data", _scene_json(scene, colors)) for scene in scenes),
    ]
    package = files(__package__)
    style, script = ((package / name).read_text(encoding="utf-8") for name in ("viewer.css", "viewer.js"))
    return "\n".join(
        [
            '<section class="map-viewer" aria-label="Map of the scenes">',
            f"<style>\n{style}</style>",
            _controls(scenes),
            _MAP,
            _legend(scenes, states),
            _HINTS,
            *data,
            f"<script>\n{script}</script>",
            "</section>",
        ]
    )


def bokeh_scripts() -> str:
    """Return BokehJS as inline scripts; a page with maps needs them once."""
    from bokeh.resources import Resources

    return Resources(mode="inline", components=["bokeh"], log_level="error").render_js()


_MAP = """\
<div class="map-frame">
<div class="map-canvas"></div>
<div class="map-zoom">
<button type="button" data-zoom="in" aria-label="Zoom in" title="Zoom in (+)">+</button>
<button type="button" data-zoom="out" aria-label="Zoom out" title="Zoom out (-)">&minus;</button>
<button type="button" data-zoom="all" aria-label="Show the whole scene" title="Show the whole scene (0)"><svg
width="16" height="16" viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="2" aria-hidden="true"><path
d="M1 5V1h4M11 1h4v4M15 11v4h-4M5 15H1v-4"/></svg></button>
</div>
<p class="map-status" role="status">Loading the map.</p>
</div>
<noscript><p class="map-note">The map needs JavaScript.</p></noscript>
<p class="map-readout" aria-live="polite"></p>"""

_HINTS = """\
<p class="map-hint map-hint-mouse">Drag to pan, Ctrl + wheel to zoom. Click the map to zoom with the wheel alone and to
use the keys +, &minus;, 0 and the arrows; Escape ends this.</p>
<p class="map-hint map-hint-touch">Tap a pixel to see its values. Two fingers pan and zoom the map, one finger scrolls
the page.</p>
<p class="map-note"></p>"""


def _controls(scenes: Sequence[SceneLayers]) -> str:
    options = "".join(f"<option>{html.escape(scene.title)}</option>" for scene in scenes)
    boxes = "".join(
        f'<label><input type="checkbox" data-layer="{name}" autocomplete="off"{" checked" if on else ""}>'
        f'<span>{label}<small class="map-missing"></small></span></label>'
        for name, (label, on) in _LAYERS.items()
    )
    return f"""\
<div class="map-controls">
<label class="map-choice">Scene <select autocomplete="off"{" hidden" if len(scenes) == 1 else ""}>{options}</select>\
{f"<b>{html.escape(scenes[0].title)}</b>" if len(scenes) == 1 else ""}</label>
<fieldset class="map-layers"><legend>Layers</legend>{boxes}</fieldset>
<label class="map-opacity">Opacity of classes and confidence
<span><input type="range" min="0" max="100" step="5" value="60" autocomplete="off"> <output>60 %</output></span></label>
</div>"""


def _legend(scenes: Sequence[SceneLayers], states: Sequence[PixelState]) -> str:
    layers = [layer for scene in scenes for layer in (scene.truth, scene.decided) if layer is not None]
    codes = sorted({int(code) for layer in layers for code in np.unique(layer)} - {NODATA})
    entries = {UNLABELLED: ("unlabelled", UNLABELLED_COLOR)} | {
        code: (state.name, state.color) for code, state in enumerate(states, FIRST_STATE)
    }
    rows = [entries[code] for code in sorted(codes, key=lambda code: (code == UNLABELLED, code))]
    if any(scene.truth is not None and scene.decided is not None for scene in scenes):
        rows.append(("error", ERROR_COLOR))
    items = [
        f'<li><i class="map-swatch" style="background:{html.escape(color)}"></i>{html.escape(name)}</li>'
        for name, color in rows
    ]
    if any(scene.confidence is not None for scene in scenes):
        stops = ", ".join(_cividis()[:: 255 // 15])
        items.append(
            "<li>confidence 0 %"
            f' <i class="map-ramp" style="background:linear-gradient(to right, {stops})"></i> 100 %</li>'
        )
    return f'<ul class="map-legend" aria-label="Legend">{"".join(items)}</ul>'


def _json_script(kind: str, value: object) -> str:
    """Return data as a JSON script element; `</script>` and `<!--` inside of texts are escaped."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" class="{kind}">{text}</script>'


def _scene_json(scene: SceneLayers, colors: dict[str, str]) -> dict[str, Any]:
    """Return a scene as the data of `viewer.js`."""
    grid, pixel_metres = scene.grid, _pixel_metres(scene.grid)
    return {
        "height": grid.height,
        "width": grid.width,
        "pixel": pixel_metres or (1.0, grid.pixel_size[1] / grid.pixel_size[0]),
        "metres": pixel_metres is not None,
        "transform": list(grid.transform)[:6],
        "crs": None if grid.crs is None else {"name": crs_name(grid.crs), "degrees": bool(grid.crs.is_geographic)},
        "image": None if scene.image is None else _jpeg_uri(scene.image),
        "valid": _deflate(scene.valid),
        "truth": None if scene.truth is None else _deflate(scene.truth),
        "decided": None if scene.decided is None else _deflate(scene.decided),
        "confidence": None if scene.confidence is None else _deflate(_percent(scene.confidence)),
        "polygons": None if scene.polygons is None else _polygons_json(scene.polygons, grid, colors),
        "note": scene.note,
    }


def _pixel_metres(grid: Grid) -> tuple[float, float] | None:
    """Return width and height of a pixel in metres; None if the grid is not georeferenced."""
    try:
        return grid.pixel_metres()
    except GridError:
        return None


def _jpeg_uri(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=_JPEG_QUALITY_PERCENT, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _deflate(codes: NDArray[Any]) -> str:
    """Deflate the low bytes of all codes (H, W), followed by the high bytes if any code is above 255; as base64."""
    low, high = codes.astype(np.uint8), (codes.astype(np.uint16) >> 8).astype(np.uint8)
    raw = low.tobytes() + (high.tobytes() if high.any() else b"")
    return base64.b64encode(zlib.compress(raw, 9)).decode()


def _percent(confidence: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return whole percents, the resolution of the map, and `_NO_CONFIDENCE` for NaN."""
    defined = np.isfinite(confidence)
    percent = np.rint(np.clip(np.where(defined, confidence, 0), 0, 1) * 100)
    return np.where(defined, percent, _NO_CONFIDENCE).astype(np.uint8)


def _polygons_json(polygons: GeoDataFrame, grid: Grid, colors: dict[str, str]) -> dict[str, list[Any]] | None:
    """Return outlines in 1/`_STEPS_PER_PIXEL` pixels and the texts of their tooltips; None if there are no polygons."""
    inverse = ~grid.transform

    def to_steps(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        columns, rows = inverse @ (xy[:, 0], xy[:, 1])
        return np.asarray(np.rint(np.stack([columns, rows], axis=1) * _STEPS_PER_PIXEL), dtype=np.float64)

    geometries = shapely.transform(polygons.geometry.to_numpy(), to_steps)
    names, areas = polygons["class"].astype(str), polygons["area_ha"]
    confidences = polygons.get("mean_conf")
    columns: dict[str, list[Any]] = {"rings": [], "name": [], "color": [], "area": [], "confidence": []}
    for row, geometry in enumerate(geometries):
        rings = [[_flat_coordinates(ring) for ring in _iter_rings(part)] for part in _iter_polygons(geometry)]
        if not rings:
            continue
        columns["rings"].append(rings)
        columns["name"].append(names.iloc[row])
        columns["color"].append(colors.get(names.iloc[row], DEFAULT_COLOR))
        area = format_hectares(areas.iloc[row])
        columns["area"].append(area if area == UNDEFINED else f"{area} ha")
        if confidences is not None:
            columns["confidence"].append(format_percent(confidences.iloc[row]))
    return columns if columns["rings"] else None


def _iter_polygons(geometry: shapely.Geometry | None) -> Iterator[shapely.Polygon]:
    for part in shapely.get_parts(geometry) if geometry is not None else ():
        if part.geom_type == "MultiPolygon":  # in a geometry collection
            yield from _iter_polygons(part)
        elif part.geom_type == "Polygon" and not part.is_empty:
            yield part


def _iter_rings(polygon: shapely.Polygon) -> Iterator[shapely.LinearRing]:
    yield polygon.exterior
    yield from polygon.interiors


def _flat_coordinates(ring: shapely.LinearRing) -> list[int]:
    """Return [column, row, column, row, ...] without the last point, which equals the first."""
    return [int(step) for step in shapely.get_coordinates(ring)[:-1].ravel()]


def _cividis() -> list[str]:
    """Return the 256 colours of matplotlib's cividis as "#rrggbb"."""
    import matplotlib as mpl

    rows = mpl.colormaps["cividis"](np.arange(256), bytes=True)
    return ["#" + bytes(row[:3]).hex() for row in rows]


def _plot_json() -> dict[str, Any]:
    from bokeh.embed import json_item

    return cast(dict[str, Any], json_item(_plot()))


def _plot() -> Plot:
    """Return the empty plot that `viewer.js` fills; x and y are metres (or pixels) from the upper left corner."""
    from bokeh.models import ColumnDataSource, HoverTool, ImageRGBA, MultiPolygons, Plot, Range1d, Toolbar
    from bokeh.models.annotations.legends import ScaleBar  # not in the type stubs of bokeh.models

    plot = Plot(
        x_range=Range1d(start=0, end=1),
        y_range=Range1d(start=-1, end=0),
        toolbar=Toolbar(logo=None),
        toolbar_location=None,
        sizing_mode="stretch_both",
        min_border=0,
        outline_line_color=None,
        background_fill_color=None,
        border_fill_color=None,
    )
    empty = np.zeros((1, 1), dtype=np.uint32)  # viewer.js takes the class of BokehJS for the layers from it
    for name in _LAYERS:
        if name != "polygons":
            source = ColumnDataSource({"image": [empty], "width": [1], "height": [1]})
            glyph = ImageRGBA(image="image", x=0, y=0, dw="width", dh="height", origin="top_left")
            glyph.update(anchor="top_left")
            plot.add_glyph(source, glyph, name=name, visible=False)
    polygons = ColumnDataSource({key: [] for key in ("xs", "ys", "name", "color", "area", "confidence")})
    casing = MultiPolygons(xs="xs", ys="ys", fill_color=None, line_color="white", line_width=3, line_join="round")
    outline = MultiPolygons(xs="xs", ys="ys", fill_color=None, line_color="color", line_width=1.5, line_join="round")
    hovered = MultiPolygons(xs="xs", ys="ys", fill_color=None, line_color="color", line_width=4, line_join="round")
    plot.add_glyph(polygons, casing, name="casing", visible=False)
    lines = plot.add_glyph(polygons, outline, hover_glyph=hovered, name="polygons", visible=False)
    bar = ScaleBar(name="scale", location="bottom_left", visible=False, bar_length=0.15, padding=6)
    plot.add_layout(bar)
    plot.add_tools(HoverTool(name="hover", renderers=[lines], tooltips=None))
    return plot
