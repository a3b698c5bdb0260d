"""The map of a report: scenes with their layers, to pan and to zoom, in a page that opens without a network.

Pixels travel as data: the photo as a JPEG, states and confidence deflated, so that no canvas that adds noise against
fingerprinting can change them. `viewer.js` unpacks the scene that is shown and hands its layers to Bokeh.

As readers know it from maps in other pages, the wheel and one finger scroll the page, also over the map; Ctrl with the
wheel, or two fingers, zoom it. The wheel alone zooms while the map has the focus, that is after a click or a drag.
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

if TYPE_CHECKING:
    from bokeh.models import Plot
    from geopandas import GeoDataFrame

NOTHING, NOT_KNOWN, FIRST_STATE = 0, 1, 2
"""What the pixels of `Scenery.truth` and `Scenery.decided` mean; a state is `FIRST_STATE` + its index."""

UNKNOWN_COLOR, WRONG_COLOR, NO_STATE_COLOR = "#9e9e9e", "#d55e00", "#333333"
_JPEG_QUALITY = 88
_NO_PERCENT = 255
_STEPS = 10  # of a polygon's coordinates in a pixel
# name of the layer: what the reader reads, whether it is on at first
_LAYERS = {
    "image": ("Image", True),
    "prediction": ("Prediction", True),
    "truth": ("Truth", False),
    "confidence": ("Confidence", False),
    "wrong": ("Wrong", False),
    "polygons": ("Polygons", True),
}


@dataclass(frozen=True)
class State:
    """What a pixel of truth or decision may be.

    Parameters
    ----------
    name
        "forest", "water + built up" where classes overlap, "background".
    color
        "#rrggbb".
    background
        Whether it is what is left when no class is there: it does not cover an image.
    """

    name: str
    color: str
    background: bool = False


@dataclass(frozen=True)
class Scenery:
    """One scene as the report shows it.

    Parameters
    ----------
    title
        What the reader chooses it by.
    grid
        Of the pixels that are shown, H x W.
    image
        uint8 (H, W, 3).
    valid
        bool (H, W): where the scene has data.
    truth, decided
        uint16 (H, W): `NOTHING` (no data or not asked), `NOT_KNOWN`, or `FIRST_STATE` + the index of a state.
    confidence
        float32 (H, W) in 0..1, NaN where there is none.
    polygons
        In the grid's CRS, with the columns `class`, `area_ha` and, where known, `mean_conf`.
    note
        Shown below the map.
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
        for plane in (self.valid, self.truth, self.decided, self.confidence):
            assert plane is None or plane.shape == self.grid.shape
        assert self.image is None or self.image.shape == (*self.grid.shape, 3)


def viewer(scenes: Sequence[Scenery], states: Sequence[State]) -> str:
    """Return the map of some scenes as a fragment of HTML: controls, map, readout and legend.

    The page has `scripts` once, anywhere. Names, titles and notes are text, whatever they hold.
    """
    assert scenes
    setup = {
        "plot": _plot_json(),
        "states": [asdict(state) for state in (State("not known", UNKNOWN_COLOR), *states)],
        "wrong": WRONG_COLOR,
        "cividis": _cividis(),
    }
    colors = {state.name: state.color for state in states}
    data = [_json("map-setup", setup), *(_json("map-data", _unfolded(scene, colors)) for scene in scenes)]
    here = files(__package__)
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("viewer.css", "viewer.js"))
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


def scripts() -> str:
    """Return BokehJS as inline scripts, which a page with maps needs once."""
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
<p class="map-status" role="status">The map is being drawn.</p>
</div>
<noscript><p class="map-note">The map needs JavaScript.</p></noscript>
<p class="map-readout" aria-live="polite"></p>"""

_HINTS = """\
<p class="map-hint map-hint-mouse">Drag to move the map. Ctrl and the wheel zoom it; once it was clicked the wheel
alone does, and the keys + &minus; 0 and the arrows work, until Escape or a click elsewhere.</p>
<p class="map-hint map-hint-touch">Tap a pixel to read it. Two fingers move and zoom the map, one scrolls the page.</p>
<p class="map-note"></p>"""


def _controls(scenes: Sequence[Scenery]) -> str:
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


def _legend(scenes: Sequence[Scenery], states: Sequence[State]) -> str:
    planes = [plane for scene in scenes for plane in (scene.truth, scene.decided) if plane is not None]
    codes = sorted({int(code) for plane in planes for code in np.unique(plane)} - {NOTHING})
    named = {NOT_KNOWN: ("not known", UNKNOWN_COLOR)} | {
        code: (state.name, state.color) for code, state in enumerate(states, FIRST_STATE)
    }
    rows = [named[code] for code in sorted(codes, key=lambda code: (code == NOT_KNOWN, code))]
    if any(scene.truth is not None and scene.decided is not None for scene in scenes):
        rows.append(("wrong", WRONG_COLOR))
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


def _json(kind: str, value: object) -> str:
    """Write data where neither `</script>` nor `<!--` inside a text can end or open anything."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" class="{kind}">{text}</script>'


def _unfolded(scene: Scenery, colors: dict[str, str]) -> dict[str, Any]:
    """Return a scene as `viewer.js` takes it."""
    grid, sides = scene.grid, _sides(scene.grid)
    return {
        "height": grid.height,
        "width": grid.width,
        "pixel": sides or (1.0, grid.pixel_size[1] / grid.pixel_size[0]),
        "metres": sides is not None,
        "transform": list(grid.transform)[:6],
        "crs": None if grid.crs is None else {"name": crs_name(grid.crs), "degrees": bool(grid.crs.is_geographic)},
        "image": None if scene.image is None else _photo(scene.image),
        "valid": _packed(scene.valid),
        "truth": None if scene.truth is None else _packed(scene.truth),
        "decided": None if scene.decided is None else _packed(scene.decided),
        "confidence": None if scene.confidence is None else _packed(_percent(scene.confidence)),
        "polygons": None if scene.polygons is None else _shapes(scene.polygons, grid, colors),
        "note": scene.note,
    }


def _sides(grid: Grid) -> tuple[float, float] | None:
    """Lengths of a pixel's sides in metres, or None where the grid has no place on the ground."""
    try:
        return grid.pixel_metres()
    except GridError:
        return None


def _photo(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _packed(plane: NDArray[Any]) -> str:
    """Deflate a plane's low bytes, followed by its high bytes where some are above 255."""
    low, high = plane.astype(np.uint8), (plane.astype(np.uint16) >> 8).astype(np.uint8)
    raw = low.tobytes() + (high.tobytes() if high.any() else b"")
    return base64.b64encode(zlib.compress(raw, 9)).decode()


def _percent(confidence: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round to whole percents, which is what the map tells."""
    known = np.isfinite(confidence)
    percent = np.rint(np.clip(np.where(known, confidence, 0), 0, 1) * 100)
    return np.where(known, percent, _NO_PERCENT).astype(np.uint8)


def _shapes(polygons: GeoDataFrame, grid: Grid, colors: dict[str, str]) -> dict[str, list[Any]] | None:
    """Return outlines in `_STEPS` of a pixel and what a tooltip says of them, or None where there are none."""
    inverse = ~grid.transform

    def to_steps(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        columns, rows = inverse @ (xy[:, 0], xy[:, 1])
        return np.asarray(np.rint(np.stack([columns, rows], axis=1) * _STEPS), dtype=np.float64)

    placed = shapely.transform(polygons.geometry.to_numpy(), to_steps)
    names, areas = polygons["class"].astype(str), polygons["area_ha"]
    means = polygons.get("mean_conf")
    found: dict[str, list[Any]] = {"rings": [], "name": [], "color": [], "area": [], "confidence": []}
    for position, shape in enumerate(placed):
        rings = [[_flat(ring) for ring in _rings(part)] for part in _parts(shape)]
        if not rings:
            continue
        found["rings"].append(rings)
        found["name"].append(names.iloc[position])
        found["color"].append(colors.get(names.iloc[position], NO_STATE_COLOR))
        found["area"].append(_hectares(areas.iloc[position]))
        if means is not None:
            found["confidence"].append(_spoken_percent(means.iloc[position]))
    return found if found["rings"] else None


def _parts(shape: shapely.Geometry | None) -> Iterator[shapely.Polygon]:
    for part in shapely.get_parts(shape) if shape is not None else ():
        if part.geom_type == "MultiPolygon":  # in a collection
            yield from _parts(part)
        elif part.geom_type == "Polygon" and not part.is_empty:
            yield part


def _rings(polygon: shapely.Polygon) -> Iterator[shapely.LinearRing]:
    yield polygon.exterior
    yield from polygon.interiors


def _flat(ring: shapely.LinearRing) -> list[int]:
    """[column, row, column, row, ...] without the last point, which is the first."""
    return [int(step) for step in shapely.get_coordinates(ring)[:-1].ravel()]


def _hectares(area: float | None) -> str:
    if area is None or not np.isfinite(area):
        return "not known"
    digits = 0 if area >= 100 else 1 if area >= 10 else 2
    return f"{area:,.{digits}f} ha" if area >= 0.005 else "less than 0.01 ha"


def _spoken_percent(share: float | None) -> str:
    return "not known" if share is None or not np.isfinite(share) else f"{100 * share:.0f} %"


def _cividis() -> list[str]:
    """The 256 colours of matplotlib's cividis as "#rrggbb"."""
    import matplotlib as mpl

    rows = mpl.colormaps["cividis"](np.arange(256), bytes=True)
    return ["#" + bytes(row[:3]).hex() for row in rows]


def _plot_json() -> dict[str, Any]:
    from bokeh.embed import json_item

    return cast(dict[str, Any], json_item(_plot()))


def _plot() -> Plot:
    """Return the empty plot that `viewer.js` fills; its x and y are metres (or pixels) from the upper left corner."""
    from bokeh.models import ColumnDataSource, HoverTool, ImageRGBA, MultiPolygons, Plot, Range1d, Toolbar
    from bokeh.models.annotations.legends import ScaleBar  # Bokeh's types do not know it as one of bokeh.models

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
    empty = np.zeros((1, 1), dtype=np.uint32)  # its class in BokehJS is that of the layers
    for name in _LAYERS:
        if name != "polygons":
            source = ColumnDataSource({"image": [empty], "width": [1], "height": [1]})
            glyph = ImageRGBA(image="image", x=0, y=0, dw="width", dh="height", origin="top_left")
            glyph.update(anchor="top_left")
            plot.add_glyph(source, glyph, name=name, visible=False)
    shapes = ColumnDataSource({key: [] for key in ("xs", "ys", "name", "color", "area", "confidence")})
    casing = MultiPolygons(xs="xs", ys="ys", fill_color=None, line_color="white", line_width=3, line_join="round")
    outline = MultiPolygons(xs="xs", ys="ys", fill_color=None, line_color="color", line_width=1.5, line_join="round")
    pointed = MultiPolygons(xs="xs", ys="ys", fill_color=None, line_color="color", line_width=4, line_join="round")
    plot.add_glyph(shapes, casing, name="casing", visible=False)
    lines = plot.add_glyph(shapes, outline, hover_glyph=pointed, name="polygons", visible=False)
    bar = ScaleBar(name="scale", location="bottom_left", visible=False, bar_length=0.15, padding=6)
    plot.add_layout(bar)
    plot.add_tools(HoverTool(name="hover", renderers=[lines], tooltips=None))
    return plot
