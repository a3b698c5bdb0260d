import math
import re
import warnings
from itertools import combinations, pairwise
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from rasterio.windows import Window

from segkit.assess.estimation import estimate
from segkit.evaluation.bootstrap import BootstrapIntervals
from segkit.evaluation.metrics import Confusion, Reliability
from segkit.plots import area_bars, charts, style, training_curves
from segkit.plots import text as plot_text
from segkit.task import LandCoverClass, Task

PLAIN = ["water", "forest", "agriculture", "urban", "wetland", "bare_soil"]
ODD = [
    "$x$ & $y$",
    'Übergangswald <dicht> & "so"',
    "森林与灌木丛的混合区域以及其他地方的森林与灌木丛",
    "W" * 30,
    "Broad-leaved evergreen woodland, closed to open (15 % or more)",
    "-- a\tb\n\x07",
]


def names_of(count, kind):
    some = {"plain": PLAIN, "odd": ODD}[kind]
    return [some[place] if place < len(some) else f"{some[place % len(some)]} {place}" for place in range(count)]


def evaluation(names, type_="multiclass", *, missing=(), seed=0):
    """What an evaluation tells of decisions that are mostly right; classes in `missing` are nowhere."""
    task = Task(type_, tuple(LandCoverClass(name, value) for value, name in enumerate(names, 1)))
    if type_ == "multiclass":
        task = Task(type_, task.classes, background=False)
    random = np.random.default_rng(seed)
    counted, sure, drawn = Confusion(task), Reliability(task), BootstrapIntervals(task)
    for scene in range(12):
        shape = (task.n_targets, 20, 20)
        there = [category for category in range(len(task.categories)) if category not in missing]
        truth = random.choice(there, shape).astype(np.int16)
        decided = np.where(random.random(shape) < random.uniform(0.6, 0.95), truth, random.choice(there, shape))
        if type_ == "multilabel":
            for target in missing:
                truth[target], decided[target] = 0, 0
        probabilities = random.random((task.channels, 20, 20))
        counted.add(decided, truth, random.uniform(0.3, 1, shape))
        sure.add(probabilities, truth)
        drawn.add(scene, Window(0, 0, 20, 20), decided, truth)
    scores = counted.summary() | {"intervals": drawn.intervals(), "reliability": counted.reliability()}
    return scores | {"brier": sure.brier(), "calibration": sure.per_channel()}


def log(epochs, *, validation=True):
    rows = [{"epoch": float(epoch), "loss": 1 / epoch} for epoch in range(1, epochs + 1)]
    more = [{"val_iou": 1 - 0.5 / row["epoch"], "val_accuracy": 1 - 0.3 / row["epoch"]} for row in rows]
    return [row | score for row, score in zip(rows, more, strict=True)] if validation else rows


def sample(names):
    """A summary with a class that was found nowhere."""
    counts = 3 * np.eye(len(names), dtype=int) + 1
    counts[-1], counts[:, -1] = 0, 0
    counts[-1, 0] = 2
    return estimate(counts, np.linspace(10, 3e7, len(names)), classes=names).summary()


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def bars(ax, label):
    return next(each for each in ax.containers if each.get_label() == label).patches


def widths(ax, label):
    return [bar.get_width() for bar in bars(ax, label)]


def line(ax, label):
    return next(each for each in ax.lines if each.get_label() == label)


def spans(ax):
    """Ends of the error bars, by their place on the y axis."""
    found = [segment for each in ax.collections if isinstance(each, LineCollection) for segment in each.get_segments()]
    return {round(start[1], 6): (start[0], end[0]) for start, end in found}


def marks(ax, label):
    """{row: value} of a series of markers."""
    found = line(ax, label)
    return list(found.get_xdata()), [round(float(y), 6) for y in found.get_ydata()]


def rows_of(ax):
    """The texts right of an axes, top to bottom, in columns."""
    notes = [each for each in ax.texts if getattr(each, "xy", (0, 0))[0] == 1 and each.xyann[1] == 0]
    columns = {}
    for note in notes:
        columns.setdefault(note.xyann[0], {})[note.xy[1]] = note.get_text()
    return [[column[y] for y in sorted(column)] for _, column in sorted(columns.items())]


# Curves


def test_curves_show_the_log():
    rows = log(5)
    left, right = training_curves.curves(rows, 4).axes
    assert list(line(left, "training loss").get_ydata()) == [row["loss"] for row in rows]
    assert list(line(right, "mean IoU").get_ydata()) == [row["val_iou"] for row in rows]
    assert list(line(right, "accuracy").get_ydata()) == [row["val_accuracy"] for row in rows]
    for ax in (left, right):
        assert list(line(ax, "saved: epoch 4").get_xdata()) == [4, 4]
        assert all(list(each.get_xdata()) == [1, 2, 3, 4, 5] for each in ax.lines[:-1])
    assert line(right, "mean IoU").get_marker() != line(right, "accuracy").get_marker()


def test_one_epoch_is_seen():
    axes = training_curves.curves(log(1), 1).axes
    assert [len(ax.lines) for ax in axes] == [2, 3]  # loss, and two scores; the last line is that of the saved epoch
    for ax in axes:
        for shown in ax.lines[:-1]:
            assert shown.get_marker() in ("o", "s")
            (x,), (y,) = shown.get_data()
            assert ax.get_xlim()[0] < x < ax.get_xlim()[1]
            assert ax.get_ylim()[0] < y < ax.get_ylim()[1]
        assert [tick for tick in ax.get_xticks() if ax.get_xlim()[0] < tick < ax.get_xlim()[1]] == [1]


def test_without_validation_there_is_only_the_loss():
    figure = training_curves.curves(log(3, validation=False), 3)
    assert len(figure.axes) == 1
    assert not {"mean IoU", "accuracy"} & set(texts(figure))
    assert "saved: epoch 3" in texts(figure)


def test_an_undefined_score_is_a_gap():
    rows = log(3)
    rows[1]["val_iou"] = math.nan
    right = training_curves.curves(rows, 3).axes[1]
    np.testing.assert_array_equal(line(right, "mean IoU").get_ydata(), [row["val_iou"] for row in rows])


# Confusion


def cells(figure):
    """{(row, column): text} of a matrix."""
    return {(int(text.get_position()[1]), int(text.get_position()[0])): text for text in figure.axes[0].texts}


def luminance(color):
    part = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(color)]
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2]


def test_a_cell_holds_the_share_of_its_row_and_the_count():
    figure = charts.confusion_matrix({"labels": ["a", "b_c"], "matrix": [[9_990_000, 10_000], [0, 45]]})
    found = {place: text.get_text() for place, text in cells(figure).items()}
    assert found == {(0, 0): "99.9 %\n9.99 M", (0, 1): "0.1 %\n10 k", (1, 0): "0 %\n0", (1, 1): "100 %\n45"}
    (mesh,) = (each for each in figure.axes[0].collections if isinstance(each, QuadMesh))
    np.testing.assert_allclose(mesh.get_array(), [[0.999, 0.001], [0, 1]])
    ax = figure.axes[0]
    assert [each.get_text() for each in ax.get_yticklabels()] == ["a", "b c"]
    assert [each.get_text() for each in ax.get_xticklabels()] == ["a", "b c"]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("truth", "prediction")
    assert ax.get_ylim() == (2, 0)  # the first row is above


def test_cells_of_many_classes_hold_a_share_only():
    matrix = np.diag(np.full(7, 1000))
    matrix[2] = [1, 0, 9, 0, 30, 0, 960]
    found = cells(charts.confusion_matrix({"labels": list("abcdefg"), "matrix": matrix.tolist()}))
    assert [found[2, column].get_text() for column in range(7)] == ["·", "", "1", "", "3", "", "96"]
    assert found[0, 0].get_text() == "100"


@pytest.mark.parametrize("size", [3, 9])
def test_a_row_without_pixels_is_empty(size):
    matrix = np.diag(np.arange(1, size + 1))
    matrix[1] = 0
    figure = charts.confusion_matrix({"labels": list("abcdefghi")[:size], "matrix": matrix.tolist()})
    found = [text.get_text() for (row, _), text in cells(figure).items() if row == 1]
    assert found == ["no pixels"]
    (mesh,) = (each for each in figure.axes[0].collections if isinstance(each, QuadMesh))
    assert np.ma.getmaskarray(mesh.get_array())[1].all()
    assert not np.ma.getmaskarray(mesh.get_array())[0].any()
    assert figure.axes[0].patches[-1].get_hatch()


@pytest.mark.parametrize("size", [6, 30])
def test_numbers_are_legible_and_inside_their_cells(size):
    random = np.random.default_rng(0)
    matrix = np.sort(random.integers(0, 10**6, (size, size)) ** 3 // 10**12, axis=1)
    matrix[0, 1:] = 0  # 100 %
    matrix[0, 0] = 123_000
    figure = charts.confusion_matrix({"labels": names_of(size, "odd"), "matrix": matrix.tolist()})
    ax = figure.axes[0]
    (mesh,) = (each for each in ax.collections if isinstance(each, QuadMesh))
    mesh.update_scalarmappable()
    renderer = figure._get_renderer()
    colors = mesh.get_facecolor().reshape(size, size, 4)
    assert len({tuple(color) for color in colors.reshape(-1, 4)}) > size
    for (row, column), text in cells(figure).items():
        if text.get_text():
            light, dark = sorted([luminance(colors[row, column][:3]), luminance(text.get_color())], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5
            corners = ax.transData.inverted().transform(text.get_window_extent(renderer))
            assert (corners[:, 0] >= column).all()
            assert (corners[:, 0] <= column + 1).all()
            assert (corners[:, 1] >= row - 0.02).all()
            assert (corners[:, 1] <= row + 1.02).all()


def test_overlapping_classes_have_a_bar_each():
    matrix = [[[50, 10], [20, 70]], [[0, 0], [0, 200_000]], [[99, 0], [0, 0]]]
    figure = charts.confusion_matrix({"labels": ["a", "b", "c"], "matrix": matrix})
    (ax,) = figure.axes
    assert widths(ax, "correct") == pytest.approx([0.7, 1, 0])
    assert widths(ax, "missed") == pytest.approx([0.2, 0, 0])
    assert widths(ax, "false alarm") == pytest.approx([0.1, 0, 0])
    assert [bar.get_x() for bar in bars(ax, "missed")] == pytest.approx([0.7, 1, 0])
    assert [bar.get_x() for bar in bars(ax, "false alarm")] == pytest.approx([0.9, 1, 0])
    assert rows_of(ax) == [["100", "200 k", "-"]]
    inside = [(text.get_text(), round(text.get_position()[0], 3)) for text in ax.texts if "%" in text.get_text()]
    assert inside == [("70 %", 0.35), ("100 %", 0.5), ("20 %", 0.8)]  # 10 % is too narrow
    looks = {(bar[0].get_facecolor(), bar[0].get_hatch()) for bar in ax.containers}
    assert len({hatch for _, hatch in looks}) == 3


# Classes


@pytest.mark.parametrize("type_", ["multiclass", "multilabel"])
def test_bars_markers_and_intervals_are_the_scores(type_):
    scores = evaluation(PLAIN, type_)
    figure = charts.class_scores(scores)
    (ax,) = figure.axes
    rows, between = scores["per_class"], scores["intervals"]["per_class"]
    assert [label.get_text() for label in ax.get_yticklabels()] == [name.replace("_", " ") for name in PLAIN]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    drawn = spans(ax)
    for label, key in (("IoU", "iou"), ("F1", "f1")):
        assert widths(ax, label) == [row[key] for row in rows.values()]
        for row, (bar, name) in enumerate(zip(bars(ax, label), PLAIN, strict=True)):
            middle = bar.get_y() + bar.get_height() / 2
            assert abs(middle - row) < 0.5
            assert drawn.pop(round(middle, 6)) == pytest.approx(between[name][key])
    for key in ("precision", "recall"):
        values, places = marks(ax, key)
        assert values == [row[key] for row in rows.values()]
        for row, (place, name) in enumerate(zip(places, PLAIN, strict=True)):
            assert abs(place - row) < 0.5
            assert drawn.pop(place) == pytest.approx(between[name][key])
    assert not drawn
    assert rows_of(ax)[:2] == [[f"{row[key]:.3f}" for row in rows.values()] for key in ("iou", "f1")]
    assert ax.get_xlabel() == "score, 95 % intervals over 12 scenes"
    assert ax.get_xlim() == (0, 1)


@pytest.mark.parametrize("intervals", [None, "missing", "null score"])
def test_intervals_may_be_missing(intervals):
    scores = evaluation(PLAIN[:2])
    if intervals == "missing":
        del scores["intervals"]
    elif intervals is None:
        scores["intervals"] = None
    else:
        scores["intervals"]["per_class"]["water"]["iou"] = None
        del scores["intervals"]["per_class"]["forest"]
    (ax,) = charts.class_scores(scores).axes
    assert len(spans(ax)) == (3 if intervals == "null score" else 0)
    assert ax.get_xlabel() == ("score, 95 % intervals over 12 scenes" if intervals == "null score" else "score")


def test_undefined_scores_are_dashes():
    scores = {
        "per_class": {
            "nowhere": {"iou": None, "f1": None, "precision": None, "recall": None, "support": 0},
            "missed": {"iou": 0.0, "f1": 0.0, "precision": None, "recall": 0.0, "support": 12_345},
            "invented": {"iou": 0.0, "f1": 0.0, "precision": 0.0, "recall": None, "support": 0},
        }
    }
    figure = charts.class_scores(scores)
    (ax,) = figure.axes
    assert rows_of(ax) == [["-", "0.000", "0.000"], ["-", "0.000", "0.000"], ["0", "12.3 k", "0"]]
    notes = {round(text.get_position()[1]): text.get_text() for text in ax.texts if "undefined" in text.get_text()}
    assert notes == {1: "precision: undefined", 2: "recall: undefined"}


# Reliability


def defined(*values):
    return [list(each) for each in zip(*(pair for pair in zip(*values, strict=True) if None not in pair), strict=True)]


def test_reliability_shows_predictions_and_classes():
    scores = evaluation(PLAIN)
    figure = charts.reliability_diagram(scores)
    upper, lower = figure.axes
    curve = scores["reliability"]
    assert [list(each) for each in line(upper, "predictions").get_data()] == defined(
        curve["confidence"], curve["right"]
    )
    assert [list(each) for each in line(upper, "perfect calibration").get_data()] == [[0, 1], [0, 1]]
    for name, channel in scores["calibration"].items():
        points = channel["reliability"]
        found = [list(each) for each in line(upper, name.replace("_", " ")).get_data()]
        assert found == defined(points["probability"], points["share"])
    assert len({each.get_marker() for each in upper.lines}) == len(upper.lines) == len(PLAIN) + 2
    assert len({each.get_color() for each in upper.lines}) == len(upper.lines)
    assert [bar.get_height() for bar in lower.patches] == curve["pixels"]
    assert [bar.get_x() for bar in lower.patches] == pytest.approx(np.arange(15) / 15)
    assert lower.get_ylim()[1] > max(curve["pixels"])
    assert f"ECE {scores['ece']:.3f}, Brier score {scores['brier']:.3f}" in texts(figure)


def test_one_channel_has_no_curve_of_its_own():
    scores = evaluation(["a"], "multilabel") | {"brier": None}
    figure = charts.reliability_diagram(scores)
    assert [each.get_label() for each in figure.axes[0].lines] == ["perfect calibration", "predictions"]
    assert any(text.endswith("Brier score -") for text in texts(figure))


def test_of_many_classes_the_worst_are_named():
    scores = evaluation([f"class {number}" for number in range(30)])
    lines = charts.reliability_diagram(scores).axes[0].lines
    ece = {name: channel["ece"] for name, channel in scores["calibration"].items()}
    assert {each.get_label() for each in lines if each.get_label().startswith("class")} == set(
        sorted(ece, key=ece.get)[-8:]
    )
    assert len(lines) == 32
    assert sum(each.get_label() == "22 other classes" for each in lines) == 1


def test_maps_have_no_reliability_diagram():
    scores = evaluation(PLAIN)
    empty = {"confidence": [None] * 15, "right": [None] * 15, "pixels": [0] * 15}
    assert charts.reliability_diagram({key: scores[key] for key in ("per_class", "confusion")}) is None
    assert charts.reliability_diagram(scores | {"reliability": None}) is None
    assert charts.reliability_diagram(scores | {"reliability": empty}) is None


# Areas


def test_areas_and_accuracies_are_those_of_the_estimate():
    scores = sample(["a", "b", "c"])
    rows = scores["per_class"]
    figure = area_bars.estimated_areas(scores)
    upper, lower = figure.axes
    assert widths(upper, "mapped") == [row["mapped_ha"] for row in rows.values()]
    assert widths(upper, "estimated, 95 % interval") == [row["area_ha"] for row in rows.values()]
    for ax, keys in ((upper, ["area_ha"]), (lower, ["users", "producers"])):
        drawn, expected = spans(ax), []
        for row, name in enumerate(rows):
            for key in keys:
                low, high = (rows[name][f"{key}_{end}95"] for end in ("low", "high"))
                if rows[name][key] is not None:
                    shift = -0.2 if key == "users" else 0.2
                    assert drawn.pop(round(row + shift, 6)) == pytest.approx((low, high))
                    expected.append(name)
        assert not drawn
        assert expected
    for key, label in (("users", "user's accuracy"), ("producers", "producer's accuracy")):
        values, _ = marks(lower, label)
        np.testing.assert_array_equal(values, [np.nan if row[key] is None else row[key] for row in rows.values()])
    assert rows["c"]["producers"] is None
    assert rows_of(lower)[0][-1] == "-"
    assert rows_of(upper)[0][0] == "10"
    assert re.fullmatch(r"[\d.]+ M \([\d.]+ M to [\d.]+ M\)", rows_of(upper)[0][1])
    overall, low, high = (scores[f"overall_accuracy{end}"] for end in ("", "_low95", "_high95"))
    assert f"overall accuracy {overall:.3f} ({low:.3f} to {high:.3f}), {scores['samples']} samples" in texts(figure)
    assert any(list(each.get_xdata()) == [overall, overall] for each in lower.lines)


def test_an_estimate_of_an_earlier_version_has_the_textbook_interval():
    scores = sample(["a", "b"])
    for row in (scores, *scores["per_class"].values()):
        for key in [key for key in row if key.endswith(("_low95", "_high95"))]:
            del row[key]
    overall, half = scores["overall_accuracy"], scores["overall_accuracy_ci95"]
    figure = area_bars.estimated_areas(scores)
    assert f"{overall:.3f} ({overall - half:.3f} to {overall + half:.3f})" in " ".join(texts(figure))
    value, half = scores["per_class"]["a"]["area_ha"], scores["per_class"]["a"]["area_ha_ci95"]
    assert spans(figure.axes[0])[0.2] == pytest.approx((value - half, value + half))
    scores["overall_accuracy_ci95"] = None
    assert f"overall accuracy {overall:.3f} (?)" in " ".join(texts(area_bars.estimated_areas(scores)))


def test_an_estimate_without_numbers_is_drawn():
    scores = sample(["a", "b"])
    scores |= dict.fromkeys(key for key in scores if key.startswith("overall_accuracy"))
    scores["per_class"] = {name: dict.fromkeys(row) for name, row in scores["per_class"].items()}
    figure = area_bars.estimated_areas(scores)
    style.to_svg(figure)
    assert rows_of(figure.axes[0]) == rows_of(figure.axes[1]) == [["-"] * 4]
    assert f"overall accuracy -, {scores['samples']} samples" in texts(figure)


# Mapped


def test_mapped_areas_are_called_biased():
    hectares = {"forest": 12_345.6, "wet_land": 0.25, "none": 0.0, "unknown": None}
    figure = area_bars.mapped_areas(hectares, {"forest": "#117733", "wet_land": "#0072b2"})
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == [12_345.6, 0.25, 0, 0]
    assert [to_rgb(bar.get_facecolor()) for bar in ax.patches[:2]] == [to_rgb("#117733"), to_rgb("#0072b2")]
    assert rows_of(ax) == [["12,346", "0.25", "0", "-"], ["> 99.9 %", "< 0.1 %", "0 %", "-"]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["forest", "wet land", "none", "unknown"]
    assert "area by pixel count (a biased estimate)" in texts(figure)


# All of them


def figures(names):
    exclusive, overlapping = evaluation(names), evaluation(names, "multilabel", missing=[0])
    return {
        "curves": training_curves.curves(log(60), 47),
        "confusion": charts.confusion_matrix(exclusive["confusion"]),
        "overlapping": charts.confusion_matrix(overlapping["confusion"]),
        "classes": charts.class_scores(exclusive),
        "classes, overlapping": charts.class_scores(overlapping),
        "reliability": charts.reliability_diagram(exclusive),
        "areas": area_bars.estimated_areas(sample(names)),
        "mapped": area_bars.mapped_areas(dict(zip(names, np.geomspace(3e7, 0.1, len(names)), strict=True)), {}),
    }


@pytest.fixture(scope="module", params=[(2, "plain"), (6, "odd"), (30, "odd")], ids=str)
def drawn(request):
    count, kind = request.param
    made = figures(names_of(count, kind))
    return names_of(count, kind), made, {what: style.to_svg(figure) for what, figure in made.items()}


def test_all_lies_on_the_canvas_and_no_names_overlap(drawn):
    _, made, _ = drawn
    for figure in made.values():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            inside, (wide, high) = figure.get_tightbbox(), figure.get_size_inches()
            assert min(inside.x0, inside.y0) >= -0.01
            assert inside.x1 <= wide + 0.01
            assert inside.y1 <= high + 0.01
            for ax in figure.axes:
                boxes = [label.get_window_extent() for label in ax.get_yticklabels() if label.get_text()]
                boxes.sort(key=lambda box: box.y0)
                assert all(upper.y0 >= lower.y1 - 0.5 for lower, upper in pairwise(boxes))
                frame = ax.get_window_extent()
                assert frame.width > 0.2 * figure.bbox.width
                beside = [note.get_window_extent() for note in ax.texts if getattr(note, "xy", (0, 0))[0] == 1]
                assert all(box.x0 >= frame.x1 + 2 for box in beside)
                assert not any(one.overlaps(other) for one, other in combinations(beside, 2) if one.x1 != other.x1)


def test_figures_are_a_column_wide_and_type_is_legible(drawn):
    names, made, _ = drawn
    for what, figure in made.items():
        if what != "confusion" or len(names) <= 6:
            assert figure.get_size_inches()[0] == 4.8
        assert all(text.get_fontsize() >= 8 for text in figure.findobj(Text))
        for ax in figure.axes:
            assert not ax.spines["top"].get_visible()
            assert not ax.spines["right"].get_visible()


def test_drawings_are_the_same_each_time(tmp_path):
    names = names_of(4, "odd")
    made, again = figures(names), figures(names)
    for what, figure in made.items():
        first = style.to_svg(figure)
        style.write_png(figure, tmp_path / "one", 60)
        style.write_png(again[what], tmp_path / "two", 60)
        assert first == style.to_svg(figure) == style.to_svg(again[what])
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
        assert (tmp_path / "one").read_bytes().startswith(b"\x89PNG")
        assert b"Software" not in (tmp_path / "one").read_bytes()  # which tells a version


def test_an_svg_is_an_element_of_a_page(drawn):
    names, _, pages = drawn
    for what, text in pages.items():
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert text.startswith("<svg")
        assert "<g id=" not in text
        assert not re.search(r"\d{4}-\d\d-\d\d", text)
        shown = "".join(root.itertext())
        if what not in ("curves", "reliability") and "$x$ & $y$" in names:
            assert "$x$ & $y$" in shown
            assert "Überg" in shown


def test_charts_ignore_the_users_matplotlib_settings():
    made = style.to_svg(training_curves.curves(log(3), 2))
    settings = {"font.size": 30, "text.parse_math": True, "svg.fonttype": "path", "axes.facecolor": "red"}
    with matplotlib.rc_context(settings):
        assert style.to_svg(training_curves.curves(log(3), 2)) == made
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (987, "987"), (999.6, "1 k"), (12_345, "12.3 k"), (999_950, "1 M"), (4_500_000, "4.5 M"), (2e9, "2 G")],
)
def test_short_numbers(value, text):
    assert plot_text.format_short(value) == text


def test_names_that_begin_alike_stay_apart():
    names = [f"Broad-leaved evergreen woodland of kind {number}" for number in range(30)]
    short = [plot_text.shorten_name(name, 1.7) for name in names]
    assert len(set(short)) == 30
    assert all(name.startswith("Broad-l") for name in short)
    assert plot_text.shorten_name("forest", 1.7) == "forest"


def test_names_are_wrapped_by_their_width():
    wrapped = {name: plot_text.wrap_name(name).split("\n") for name in ("il" * 15, "Broad-leaved evergreen", "W" * 15)}
    assert [len(lines) for lines in wrapped.values()] == [2, 2, 2]
    assert wrapped["Broad-leaved evergreen"] == ["Broad-leaved", "evergreen"]
    assert all("".join(lines) == name for name, lines in wrapped.items() if " " not in name)
    assert plot_text.wrap_name("many words " * 20).endswith(" …")
    assert plot_text.wrap_name("many words " * 20).count("\n") == 2


def test_of_many_classes_the_most_confused_are_shown_and_no_pixel_is_lost():
    counts = np.diag(np.arange(300) + 1)
    counts[7, 200] = counts[250, 3] = 99
    labels, joined = charts._join_least_confused([f"c{number}" for number in range(300)], counts)
    assert len(labels) == len(joined) == 30
    assert {"c3", "c7", "c200", "c250"} < set(labels)
    assert labels[-1] == "271 other classes"
    assert joined.sum() == counts.sum()
    assert joined[labels.index("c7"), labels.index("c200")] == joined[labels.index("c250"), labels.index("c3")] == 99
    assert len(style.to_svg(charts.confusion_matrix({"labels": [str(k) for k in range(300)], "matrix": counts}))) < 1e6
