"""The map of a report: what its page holds, and what a reader sees and does with it in Chromium."""

import base64
import io
import json
import re
import zlib
from html.parser import HTMLParser

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from scipy.ndimage import gaussian_filter

from segkit.io.grid import Grid
from segkit.reporting.viewer import (
    ERROR_COLOR,
    FIRST_STATE,
    NODATA,
    UNLABELLED,
    PixelState,
    SceneLayers,
    bokeh_scripts,
    render_viewer,
)

pytest_plugins = ["browser"]

HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 1'> & \"'`$$x$$ @area {{1}}"
STATES = [PixelState("forest", "#1b7837"), PixelState("water", "#4682b4"), PixelState(HOSTILE, "#c0392b")]
STATES += [PixelState(f"mix {number}", f"#{number:02x}{number:02x}40") for number in range(3, 256)]
STATES += [PixelState("far away", "#8c6bb1")]
FOREST, WATER, MARKUP, FAR = FIRST_STATE, FIRST_STATE + 1, FIRST_STATE + 2, FIRST_STATE + 256
H, W = 20, 30
UTM = Grid(H, W, Affine(10, 0, 600_000, 0, -10, 9_000_000), CRS.from_epsg(32722))
RED = (200, 30, 40)


def rectangle(left, top, right, bottom, grid=UTM):
    """A polygon around pixels, from column `left` and row `top` on."""
    corners = [grid.transform @ corner for corner in ((left, top), (right, top), (right, bottom), (left, bottom))]
    return shapely.Polygon(corners)


def layer(*rows, crs="EPSG:32722"):
    classes, areas, means, shapes = zip(*rows, strict=True)
    return geopandas.GeoDataFrame(
        {"class": classes, "area_ha": areas, "mean_conf": means}, geometry=list(shapes), crs=crs
    )


def full(**changed):
    """A scene with everything: water in the left half is taken for forest above row 10; its corners are special."""
    decided, truth = np.full((H, W), FOREST, np.uint16), np.full((H, W), FOREST, np.uint16)
    decided[10:, :15], truth[:, :15] = WATER, WATER
    decided[12, 20] = NODATA
    truth[:, 25:], decided[:, 25:] = UNLABELLED, MARKUP
    decided[0, 0], truth[0, 0] = FAR, FAR - 1
    decided[H - 1, W - 1], truth[H - 1, W - 1] = FAR, NODATA
    confidence = np.full((H, W), 0.5, np.float32)
    confidence[3, 7] = 0.876
    confidence[0, 0], confidence[0, W - 1], confidence[H - 1, W - 1] = 1, 0.004, np.nan
    valid = np.ones((H, W), bool)
    valid[H - 1, 0] = valid[10, 20] = False
    decided[~valid], truth[~valid], confidence[~valid] = NODATA, NODATA, np.nan
    hollow = rectangle(2, 12, 12, 18) - rectangle(5, 14, 9, 16)
    polygons = layer(("water", 1234.56, 0.876, hollow), (HOSTILE, 3.14159, np.nan, rectangle(26, 2, 29, 6)))
    parts = {"image": np.broadcast_to(np.array(RED, np.uint8), (H, W, 3)), "valid": valid, "truth": truth}
    parts |= {"decided": decided, "confidence": confidence, "polygons": polygons, "note": f"every pixel {HOSTILE}"}
    return SceneLayers(**{"title": f"first {HOSTILE}", "grid": UTM} | parts | changed)


def bare(**changed):
    """A scene without CRS, image and truth."""
    grid = Grid(8, 4, Affine.identity(), None)
    decided = np.full((8, 4), WATER, np.uint16)
    parts = dict.fromkeys(("image", "truth", "confidence", "polygons")) | {"decided": decided}
    return SceneLayers(**{"title": "second", "grid": grid, "valid": np.ones((8, 4), bool)} | parts | changed)


def page(fragment, *, last=""):
    style = "<style>body { font: 16px sans-serif; margin: 8px } footer { height: 3000px }</style>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">{style}'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{fragment}<footer></footer>{last}</body></html>'


class Elements(HTMLParser):
    """The elements of a page, and the texts of its data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.data = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))

    def handle_data(self, data):
        if self.cdata_elem == "script" and self.attributes[-1].get("class") == "map-data":
            self.data.append(json.loads(data))


def sent(*scenes):
    return Elements(render_viewer(scenes, STATES)).data


def unpack(text, shape):
    raw = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(-1, *shape).astype(int)
    return raw[0] if len(raw) == 1 else raw[0] + 256 * raw[1]


def test_states_and_confidence_are_embedded_exactly():
    scene = full()
    (found,) = sent(scene)
    for name in ("valid", "truth", "decided"):
        np.testing.assert_array_equal(unpack(found[name], (H, W)), getattr(scene, name))
    percent = unpack(found["confidence"], (H, W))
    known = np.isfinite(scene.confidence)
    np.testing.assert_array_equal(percent[known], np.rint(scene.confidence[known] * 100))
    assert (percent[~known] == 255).all()


def test_the_image_is_a_good_jpeg():
    rng = np.random.default_rng(0)
    image = np.stack([gaussian_filter(rng.uniform(0, 2000, (H, W)) - 900, 3) for _ in range(3)], -1).clip(0, 255)
    (found,) = sent(full(image=image.astype(np.uint8)))
    kind, _, data = found["image"].partition(",")
    assert kind == "data:image/jpeg;base64"
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    assert np.abs(back - image).mean() < 4


def test_names_are_text_and_nothing_is_loaded():
    fragment = render_viewer([full(), bare()], STATES)
    found = Elements(fragment)
    assert not {"img", "link", "iframe", "object", "embed"} & set(found.tags)
    assert found.tags.count("script") == 4  # setup, two scenes, the program
    assert not [attributes for attributes in found.attributes if attributes.keys() & {"src", "href", "onerror"}]
    assert not re.search(r"https?://|@import|url\(", fragment)
    assert not re.search(r'src=|href="', re.sub(r"<script>.*", "", bokeh_scripts(), flags=re.DOTALL))
    assert bokeh_scripts().count("<script") == bokeh_scripts().count("</script>")


def test_a_large_noisy_scene_stays_small():
    """At most 2.7 bytes per pixel, all layers together: 6 MB for the largest scene of a report."""
    rng, side = np.random.default_rng(0), 700
    shape = (side, side)
    cover = np.argmax([gaussian_filter(rng.normal(size=shape), 6) for _ in range(6)], axis=0)
    speckled = np.where(rng.random(shape) < 0.03, rng.integers(0, 6, shape), cover)
    texture = gaussian_filter(rng.normal(size=(*shape, 3)), (1, 1, 0)) * 60
    scene = SceneLayers(
        title="noise",
        grid=Grid(side, side, UTM.transform, UTM.crs),
        image=(30 * cover[..., None] + 40 + texture).clip(0, 255).astype(np.uint8),
        valid=np.ones(shape, bool),
        truth=(FIRST_STATE + cover).astype(np.uint16),
        decided=(FIRST_STATE + speckled).astype(np.uint16),
        confidence=(1 - np.abs(rng.normal(size=shape)) * 0.05 * (1 + (speckled != cover))).astype(np.float32),
        polygons=None,
    )
    assert len(render_viewer([scene], STATES)) < 2.67 * side**2


def test_outlines_lie_in_the_pixels_of_the_grid():
    turned = Grid(H, W, Affine.translation(600_000, 9_000_000) @ Affine.rotation(30) @ Affine.scale(10, -5), UTM.crs)
    hollow = rectangle(2, 3, 12, 18, turned) - rectangle(5, 6, 7.26, 8, turned)
    several = shapely.GeometryCollection(
        [shapely.MultiPolygon([rectangle(0, 0, 1, 1, turned)]), rectangle(3, 0, 4, 1, turned), shapely.Point(0, 0)]
    )
    rows = [("forest", 12.34, 0.5, hollow), ("moss", None, None, several), ("water", 0.001, 1, shapely.Polygon())]
    rows += [("water", 123, 1, None)]
    (found,) = sent(full(grid=turned, polygons=layer(*rows)))
    ((shell, hole),) = found["polygons"]["rings"][0]
    assert {tuple(corner) for corner in np.reshape(shell, (-1, 2))} == {(20, 30), (120, 30), (120, 180), (20, 180)}
    assert {tuple(corner) for corner in np.reshape(hole, (-1, 2))} == {(50, 60), (73, 60), (73, 80), (50, 80)}
    assert [len(parts) for parts in found["polygons"]["rings"]] == [1, 2]
    del found["polygons"]["rings"]
    assert found["polygons"] == {
        "name": ["forest", "moss"],
        "color": ["#1b7837", "#333333"],
        "area": ["12.3 ha", "-"],
        "confidence": ["50.0 %", "-"],
    }


@pytest.mark.parametrize(
    ("hectares", "text"),
    [(0.0012, "0.0012 ha"), (0.456, "0.456 ha"), (45.67, "45.7 ha"), (12345.6, "12,346 ha")],
)
def test_areas_have_three_digits(hectares, text):
    (found,) = sent(full(polygons=layer(("water", hectares, 0.5, rectangle(0, 0, 1, 1)))))
    assert found["polygons"]["area"] == [text]


def test_pixels_have_their_shape_on_the_ground():
    degrees = Grid(H, W, Affine(1e-4, 0, -60, 0, -1e-4, 60), CRS.from_epsg(4326))
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    stretched = Affine(10, 0, 0, 0, -20, 0)
    in_degrees, nowhere, on_site = sent(
        full(grid=degrees, polygons=None),
        full(grid=Grid(H, W, stretched, None), polygons=None),
        full(grid=Grid(H, W, stretched, local), polygons=None),
    )
    assert in_degrees["pixel"] == pytest.approx([5.58, 11.14], abs=0.02)
    assert in_degrees["metres"]
    assert in_degrees["crs"] == {"name": "EPSG:4326", "degrees": True}
    assert [one["pixel"] for one in (nowhere, on_site)] == [[1, 2], [1, 2]]
    assert not nowhere["metres"]
    assert not on_site["metres"]
    assert nowhere["crs"] is None


def legend(text):
    return [
        re.sub(r"<[^>]*>", "", item).strip()
        for item in re.findall(r"<li>(.*?)</li>", re.search(r'<ul class="map-legend".*?</ul>', text, re.DOTALL)[0])
    ]


def test_the_legend_names_what_occurs():
    assert legend(render_viewer([bare()], STATES)) == ["water"]
    names = legend(render_viewer([bare(), full()], STATES))
    assert names[:2] == ["forest", "water"]
    assert names[-3:] == ["unlabelled", "error", "confidence 0 %  100 %"]
    assert "mix 3" not in names


# What follows is seen in Chromium.


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(bokeh_scripts() + render_viewer([full(), bare()], STATES)), encoding="utf-8")
    return path


READY = "return document.querySelector('.map-viewer').dataset.state === 'ready'"


@pytest.fixture
def shown(browser, report):
    """The report with both scenes, at the size of a desktop."""
    browser.open(report)
    browser.until(READY)
    yield browser
    assert browser.errors() == []


def place(browser, row, column):
    """Where the middle of a pixel lies in the view."""
    return browser.run(
        """
        const [row, column, sides] = arguments;
        const {x_range, y_range, inner_width, inner_height} = Bokeh.index.roots[0].model;
        const {left, top} = document.querySelector(".map-canvas").getBoundingClientRect();
        const x = (column + 0.5) * sides[0], y = -(row + 0.5) * sides[1];
        return [left + (x - x_range.start) / (x_range.end - x_range.start) * inner_width,
                top + (y_range.end - y) / (y_range.end - y_range.start) * inner_height];
        """,
        row,
        column,
        UTM.pixel_metres(),
    )


def until_color(browser, row, column, wanted, near=3):
    """Wait for Bokeh to paint a pixel."""
    until_color_at(browser, *place(browser, row, column), wanted, near)


def until_color_at(browser, x, y, wanted, near=3):
    wanted = tuple(int(wanted[at : at + 2], 16) for at in (1, 3, 5)) if isinstance(wanted, str) else wanted
    for _ in range(200):
        data = browser.command("Page.captureScreenshot")["data"]
        found = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").getpixel((round(x), round(y)))
        if np.abs(np.subtract(found, wanted)).max() <= near:
            return
    raise AssertionError(f"{found} at x {x}, y {y}, not {wanted}")


def until_middle(browser, wanted):
    """Wait for Bokeh to paint the middle of the map."""
    wanted = tuple(int(wanted[at : at + 2], 16) for at in (1, 3, 5))
    x, y = browser.run(
        """
        const {x, y, width, height} = document.querySelector(".map-canvas").getBoundingClientRect();
        return [x + width / 2, y + height / 2];
        """
    )
    for _ in range(200):
        data = browser.command("Page.captureScreenshot")["data"]
        found = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").getpixel((round(x), round(y)))
        if np.abs(np.subtract(found, wanted)).max() <= 3:
            return
    raise AssertionError(f"{found} in the middle, not {wanted}")


def switch(browser, *names):
    for name in names:
        browser.find(f"[data-layer={name}]").click()


def read(browser, row, column):
    browser.point(*place(browser, row, column))
    browser.until("return document.querySelector('.map-readout').textContent.startsWith(arguments[0])", f"row {row} ")
    return browser.find(".map-readout").text


def tooltip(browser):
    """Text and elements of Bokeh's tooltip, which lies in a shadow of a shadow; none is []."""
    return browser.run(
        """
        const found = [], walk = root => {
          for (const one of root.querySelectorAll("*")) {
            if (one.matches(".bk-Tooltip") && one.getClientRects().length)
              found.push(one.shadowRoot.querySelector(".bk-tooltip-content").innerText,
                         ...[...one.shadowRoot.querySelectorAll("script, img")].map(e => e.outerHTML));
            if (one.shadowRoot) walk(one.shadowRoot);
          }
        };
        walk(document);
        return found;
        """
    )


def until_tooltip(browser, *lines):
    for _ in range(500):
        found = tooltip(browser)
        if (found and found[0].split("\n")) == list(lines) or found == list(lines):
            return
    raise AssertionError(f"the tooltip says {found}")


def span(browser):
    return browser.run("const {start, end} = Bokeh.index.roots[0].model.x_range; return end - start")


def test_the_page_makes_no_requests(shown):
    assert {address.partition(":")[0] for address in shown.requests()} <= {"file", "data", "blob"}
    entries = shown.run("return performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 5))")
    assert set(entries) <= {"data:", "blob:", "file:"}
    assert not shown.run("return 'hacked' in window")


def mixed(below, above, share):
    return tuple(
        round(a * (1 - share) + int(above[at : at + 2], 16) * share) for a, at in zip(below, (1, 3, 5), strict=True)
    )


def test_each_box_switches_its_layer(shown):
    paper = (238, 241, 241)
    until_color(shown, 5, 20, mixed(RED, "#1b7837", 0.6))
    switch(shown, "prediction")
    until_color(shown, 5, 20, RED)
    until_color(shown, 10, 20, paper)  # no data
    switch(shown, "truth")
    until_color(shown, 5, 5, mixed(RED, "#4682b4", 0.6))
    until_color(shown, 5, 26, mixed(RED, "#9e9e9e", 0.6))
    until_color(shown, H - 1, W - 1, RED)
    switch(shown, "truth", "confidence")
    until_color(shown, 5, 20, mixed(RED, "#7d7c78", 0.6), near=4)
    until_color(shown, H - 1, W - 1, RED)
    switch(shown, "confidence", "errors")
    until_color(shown, 5, 5, ERROR_COLOR)
    until_color(shown, 0, 0, ERROR_COLOR)
    for row, column in ((15, 3), (5, 20), (12, 20), (10, 25), (H - 1, W - 1)):
        until_color(shown, row, column, RED)
    switch(shown, "image")
    until_color(shown, 5, 20, paper)


def test_background_is_transparent_over_an_image(browser, tmp_path):
    states = [PixelState("none", "#123456", background=True), PixelState("water", "#4682b4")]
    decided = np.full((H, W), FIRST_STATE, np.uint16)
    decided[10:, :15] = FIRST_STATE + 1
    covering = full(decided=decided, truth=None, polygons=None)
    (tmp_path / "page.html").write_text(page(render_viewer([covering], states), last=bokeh_scripts()), encoding="utf-8")
    browser.open(tmp_path / "page.html")
    browser.until(READY)
    until_color(browser, 5, 20, RED)
    until_color(browser, 15, 5, mixed(RED, "#4682b4", 0.6))
    without = bare(decided=np.full((8, 4), FIRST_STATE, np.uint16))
    (tmp_path / "page.html").write_text(page(render_viewer([without], states), last=bokeh_scripts()), encoding="utf-8")
    browser.open(tmp_path / "page.html")
    browser.until(READY)
    until_middle(browser, "#123456")


def test_outlines_are_switched_with_their_tooltips(shown):
    edge = (14.5, 1.5)  # the middle of this pixel lies on the left side of the water
    switch(shown, "prediction")
    until_color(shown, *edge, "#4682b4", near=60)
    shown.point(*place(shown, 13, 3))
    until_tooltip(shown, "water", "1,235 ha", "mean confidence 87.6 %")
    shown.point(*place(shown, 15, 7))  # the hole
    until_tooltip(shown)
    shown.point(*place(shown, 13, 3))
    until_tooltip(shown, "water", "1,235 ha", "mean confidence 87.6 %")
    casing = "return Bokeh.documents[0].get_model_by_name('casing').visible"
    assert shown.run(casing)
    switch(shown, "polygons")
    assert not shown.run(casing)
    until_color(shown, *edge, RED)
    shown.point(*place(shown, 13, 4))
    until_tooltip(shown)


def test_names_are_escaped(shown):
    shown.point(*place(shown, 4, 27))
    until_tooltip(shown, HOSTILE, "3.14 ha", "mean confidence -")
    assert f"prediction {HOSTILE}" in read(shown, 3, 27)
    assert shown.run("return document.querySelector('option').textContent") == f"first {HOSTILE}"
    assert HOSTILE in shown.find(".map-legend").text
    assert shown.find(".map-note").text == f"every pixel {HOSTILE}"
    assert not shown.run("return 'hacked' in window")


@pytest.mark.parametrize(
    ("row", "column", "x", "y", "facts"),
    [
        (0, 0, 600_005, 8_999_995, "prediction far away confidence 100 % truth mix 255"),
        (0, W - 1, 600_295, 8_999_995, f"prediction {HOSTILE} confidence 0 % truth unlabelled"),
        (H - 1, 0, 600_005, 8_999_805, "prediction nodata confidence none truth nodata"),
        (H - 1, W - 1, 600_295, 8_999_805, "prediction far away confidence none truth none"),
        (3, 7, 600_075, 8_999_965, "prediction forest confidence 88 % truth water"),
    ],
)
def test_the_readout_follows_the_pointer(shown, row, column, x, y, facts):
    text = " ".join(read(shown, row, column).split())
    assert text == f"row {row} column {column} x, y {x}, {y} (EPSG:32722) {facts}"


def test_another_scene_with_fewer_layers(shown):
    switch(shown, "truth")
    shown.run("document.querySelector('select').value = 'second'")
    shown.run("document.querySelector('select').dispatchEvent(new Event('change'))")
    shown.until("return document.querySelector('.map-note').textContent === '' && " + READY[7:])
    off = shown.run("return [...document.querySelectorAll('[data-layer]:disabled')].map(box => box.dataset.layer)")
    assert off == ["image", "truth", "confidence", "errors", "polygons"]
    assert shown.find("label:has([data-layer=truth])").text.split() == ["Truth", "(none)"]
    assert shown.find("output").text == "100 %"
    scale = "return Bokeh.documents[0].get_model_by_name('scale').visible"
    assert not shown.run(scale)
    frame = shown.run(
        """
        const {x, y, width, height} = document.querySelector(".map-frame").getBoundingClientRect();
        return [x + width / 2, y + height / 2];
        """
    )
    until_color_at(shown, *frame, "#4682b4")
    shown.point(*frame)
    text = shown.until(
        "const said = document.querySelector('.map-readout').textContent; return said.startsWith('row') && said"
    )
    assert " ".join(text.split()) == "row 4 column 2 prediction water"
    shown.run("document.querySelector('select').selectedIndex = 0")
    shown.run("document.querySelector('select').dispatchEvent(new Event('change'))")
    shown.until(scale)
    assert shown.find("[data-layer=truth]").is_selected()
    assert shown.find("output").text == "60 %"
    assert shown.find("label:has([data-layer=truth])").text == "Truth"


def test_the_slider_fades_classes(shown):
    shown.run(
        """
        const slider = document.querySelector("input[type=range]");
        slider.value = 100;
        slider.dispatchEvent(new Event("input"));
        """
    )
    until_color(shown, 5, 20, "#1b7837")
    assert shown.find("output").text == "100 %"


def test_the_wheel_scrolls_the_page_until_the_map_has_focus(shown):
    x, y = place(shown, 5, 20)
    before = span(shown)
    shown.point(x, y, "mouseWheel", deltaX=0, deltaY=120)
    shown.until("return scrollY > 100")
    assert span(shown) == before
    shown.run("scrollTo(0, 0)")
    shown.point(x, y, "mouseWheel", deltaX=0, deltaY=-120, modifiers=2)  # Ctrl
    zoomed = span(shown)
    assert zoomed < before
    assert place(shown, 5, 20) == pytest.approx([x, y], abs=1.5)
    shown.click(x, y)
    shown.point(x, y, "mouseWheel", deltaX=0, deltaY=-120)
    assert span(shown) < zoomed
    assert shown.run("return scrollY") == 0


def test_a_mouse_drags_and_keys_and_buttons_work(shown):
    x, y = place(shown, 5, 20)
    before = span(shown)
    shown.point(x, y, "mousePressed", button="left", buttons=1, clickCount=1)
    shown.point(x + 40, y + 25, buttons=1)
    shown.point(x + 40, y + 25, "mouseReleased", button="left", clickCount=1)
    assert place(shown, 5, 20) == pytest.approx([x + 40, y + 25], abs=1)
    shown.point(x, y)
    assert place(shown, 5, 20) == pytest.approx([x + 40, y + 25], abs=1)  # released
    shown.command("Input.dispatchKeyEvent", type="keyDown", key="+", text="+")
    assert span(shown) == pytest.approx(before / 1.5)
    shown.command("Input.dispatchKeyEvent", type="keyDown", key="0", text="0")
    assert span(shown) == pytest.approx(before)
    assert place(shown, 5, 20) == pytest.approx([x, y], abs=1)
    shown.command("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    assert place(shown, 5, 20)[0] < x - 50
    shown.find("[data-zoom=out]").click()
    assert span(shown) == pytest.approx(before * 1.5)
    shown.find("[data-zoom=all]").click()
    assert span(shown) == pytest.approx(before)


def test_a_phone_fits_and_one_finger_scrolls(browser, report):
    browser.open(report, width=360, height=740, phone=True)
    browser.until(READY)
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    sides = browser.run(
        "const {width, height} = document.querySelector('.map-frame').getBoundingClientRect(); return [width, height]"
    )
    assert sides[0] > 300
    assert sides[1] >= 300
    heights = browser.run(
        "return [...document.querySelectorAll('.map-layers label, select, [data-zoom]')].map(e => e.offsetHeight)"
    )
    assert min(heights) >= 44
    browser.run("document.querySelector('.map-frame').scrollIntoView({block: 'center'})")
    x, y = place(browser, 3, 27)
    browser.touch("touchStart", (x, y))
    browser.touch("touchEnd")
    until_tooltip(browser, HOSTILE, "3.14 ha", "mean confidence -")
    assert browser.find(".map-readout").text.startswith("row 3\n")
    start = "const {x_range, y_range} = Bokeh.index.roots[0].model; return [x_range.start, y_range.start]"
    before, began, top = span(browser), browser.run(start), browser.run("return scrollY")
    browser.touch("touchStart", (x, y))
    for step in range(1, 8):
        browser.touch("touchMove", (x, y - 15 * step))
    browser.touch("touchEnd")
    browser.until("return scrollY > arguments[0] + 30", top)
    still = "const y = scrollY; return new Promise(done => setTimeout(() => done(scrollY === y), 100))"
    browser.until(still)
    assert browser.run(start) == began
    x, y = place(browser, 10, 15)
    browser.touch("touchStart", (x - 20, y), (x + 20, y))
    for step in range(1, 5):
        browser.touch("touchMove", (x - 20 - 5 * step, y), (x + 20 + 5 * step, y))
    browser.touch("touchEnd")
    assert span(browser) == pytest.approx(before / 2, rel=0.05)
    assert place(browser, 10, 15) == pytest.approx([x, y], abs=2)
    assert browser.errors() == []


def test_the_map_keeps_its_shape_when_the_window_changes(shown):
    for width in (500, 1100):
        shown.command("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        aspect = """
            const {x_range: x, y_range: y, inner_width, inner_height} = Bokeh.index.roots[0].model;
            const frame = document.querySelector(".map-canvas").clientWidth;
            return inner_width === frame
                && Math.abs((x.end - x.start) / inner_width / ((y.end - y.start) / inner_height) - 1) < 1e-6
        """
        shown.until(aspect)


def test_the_visible_map_is_printed(shown):
    until_color(shown, 5, 20, mixed(RED, "#1b7837", 0.6))
    shown.run("window.dispatchEvent(new Event('beforeprint'))")
    painted = shown.run(
        """
        const copy = document.querySelector("canvas.map-print");
        const {data} = copy.getContext("2d").getImageData(copy.width / 2, copy.height / 4, 1, 1);
        return [...data];
        """
    )
    assert painted[3] == 255
    shown.run("window.dispatchEvent(new Event('afterprint'))")
    assert not shown.run("return document.querySelector('.map-print')")
    shown.command("Emulation.setEmulatedMedia", media="print")
    assert not shown.find(".map-controls").is_displayed()
    assert shown.find(".map-legend").is_displayed()
    shown.command("Emulation.setEmulatedMedia", media="")


def test_two_maps_in_one_page_one_of_them_folded(browser, tmp_path):
    path = tmp_path / "two.html"
    folded = f"<details><summary>more</summary>{render_viewer([full()], STATES)}</details>"
    path.write_text(page(render_viewer([bare()], STATES) + folded, last=bokeh_scripts()), encoding="utf-8")
    browser.open(path)
    browser.until("return [...document.querySelectorAll('.map-viewer')].every(map => map.dataset.state === 'ready')")
    browser.find("summary").click()
    browser.until(
        """
        const {x_range: {start, end}, inner_width} = Bokeh.documents[1].roots()[0];
        return inner_width > 300 && start < 0 && end > 300 && end - start < 5000;
        """
    )
    assert browser.errors() == []


def test_a_map_that_cannot_be_drawn_shows_the_reason(browser, report, tmp_path):
    path = tmp_path / "broken.html"
    text = report.read_text(encoding="utf-8")
    path.write_text(text.replace("<section", "<script>delete window.DecompressionStream</script><section", 1), "utf-8")
    browser.open(path)
    browser.until("return document.querySelector('.map-viewer').dataset.state === 'failed'")
    assert browser.find(".map-status").text == "The map cannot be drawn: this browser is too old; use a current one"
