"""The report: what it is made of, what it tells, and that it works in a browser."""

import json
import re
import shutil
import sys
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import rasterio
from matplotlib.image import imread
from quick import skip_pictures
from scipy.stats import spearmanr
from synthetic import TASKS, recipe_for, write_pair, write_raster

import segkit
from segkit.assess import estimate, write_estimate
from segkit.cli import app as cli
from segkit.errors import DataError, GridError, MissingFileError, OutputExistsError, UsageError
from segkit.plots.text import format_hectares
from segkit.reporting.report import report
from segkit.reporting.sections import ReportBuilder, _saved_epoch

pytest_plugins = ["browser"]

READY = "return document.querySelector('.map-viewer').dataset.state === 'ready'"
MARKUP = 'cut <b>&"</b>'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with two validation scenes, a map by its model, scores and areas; its class's name looks like markup."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("abcd"):
        write_pair(root, "binary", name, height=64, width=80, seed=seed)
    task = TASKS["binary"] | {"classes": [{"name": MARKUP, "value": 7, "color": "#d7301f"}]}
    split = {"val": {"by": "scene", "fraction": 0.5}}
    recipe = recipe_for(root, "binary", task=task, data=split, train={"epochs": 6, "steps_per_epoch": 8})
    with pytest.MonkeyPatch.context() as patch:
        skip_pictures(patch.setattr)  # reports draw their own
        run = segkit.train(recipe, root / "run")
    scene, labels = root / "images" / "a.tif", root / "labels" / "a.tif"
    segkit.predict(run.model, scene, root / "map.tif", probabilities=root / "chances.tif", device="cpu")
    segkit.evaluate(run.model, scene, labels, root / "scores.json", device="cpu")
    found = estimate([[90, 2], [5, 60]], [900.0, 100.0], classes=["background", MARKUP])
    write_estimate(found, root / "areas.json")
    return root


class Page(HTMLParser):
    """A page's headings, tags, and what its elements would load."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.headings, self.loads, self._texts, self._in = [], [], [], [], None
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._in = tag
        self.loads += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]

    def handle_data(self, data):
        if self._in not in ("script", "style"):
            self._texts.append(data)
        if self._in in ("h1", "h2") and data.strip():
            self.headings.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self._texts))


def test_report_of_a_run(made, tmp_path):
    result = report(made / "run", tmp_path / "run.html", png=tmp_path / "png", device="cpu")
    page = Page(result.path)
    assert page.headings == ["binary", "Map", "Validation", "Tiles with most and fewest errors", "Training"]
    assert all(load.startswith("data:") for load in page.loads)
    assert "b" not in page.tags
    assert MARKUP in page.text
    metrics = json.loads((made / "run" / "metrics.json").read_text())
    for key in ("overall_accuracy", "mean_iou"):
        assert f"{metrics[key]:.3f}" in page.text
    assert re.search(r"training data *2 scenes, [1-9],[0-9]{3} labelled pixels", page.text)
    assert "calibration error" in page.text
    baseline = metrics["baselines"]["lda"]["mean_iou"]
    assert re.search(rf"linear discriminant of single pixels .*mean iou {baseline:.3f}", page.text)
    assert {path.name for path in result.pictures} == {path.name for path in (tmp_path / "png").iterdir()}
    names = [path.stem for path in result.pictures]
    assert names[:7] == [
        "validation-classes", "validation-confusion", "validation-reliability", "validation-distance", "worst-1",
        "best-1", "training-curves"
    ]  # fmt: skip
    assert "Scores of 2 scenes by their distance from the training scenes" in page.text
    assert "rank correlation" not in page.text  # of two scenes
    assert "Scenes with the lowest accuracy" in page.text
    for row in metrics["scenes"]:
        assert f"{row['scene']} {row['overall_accuracy']:.3f} " in page.text
        assert f"{row['pixels']:,} {row['distance']:.1f}" in page.text
    assert len([name for name in names if name.startswith("map-")]) == 2
    for path in result.pictures:
        assert imread(path).ndim == 3
    assert result.path.stat().st_size < 15e6


def test_report_of_a_map(made, tmp_path):
    page = Page(report(made / "map.tif", tmp_path / "map.html").path)
    assert page.headings == ["map", "Map", "Areas on the map"]
    with rasterio.open(made / "map.tif") as dataset:
        decided = int((dataset.read(1) != dataset.nodata).sum())
    assert f"{decided:,}" in page.text
    assert "biased estimate" in page.text


def test_a_map_with_labels_is_scored_as_evaluate_does(made, tmp_path):
    page = report(
        made / "map.tif",
        tmp_path / "map.html",
        images=[made / "images" / "a.tif"],
        labels=made / "labels" / "a.tif",
        probabilities=made / "chances.tif",
        ignore=[255],
        boundary_width="20m",
        min_object_area="12px",
    )
    found = Page(page.path)
    assert "boundary width 20m, minimum object size 12px" in found.text
    assert found.headings[2:] == [
        "Areas on the map",
        "Scores of map (training labels)",
        "Tiles with most and fewest errors of map",
    ]
    scores = segkit.evaluate(made / "map.tif", None, made / "labels" / "a.tif", ignore=[255])
    for key in ("overall_accuracy", "mean_iou", "macro_f1"):
        assert f"{scores[key]:.3f}" in found.text


def test_scores_on_training_labels_are_marked_without_the_run_too(made, tmp_path):
    """The model's file is where it was when it made the map."""
    labels, other = made / "labels" / "a.tif", tmp_path / "other.tif"
    shutil.copy(labels, other)
    reclassified = segkit.reclassify(made / "map.tif", tmp_path / "new.tif", rename={MARKUP: MARKUP + "!"})

    def title(map_path, truth):
        page = report(map_path, tmp_path / "map.html", labels=truth, ignore=[255], overwrite=True, device="cpu")
        return [one for one in Page(page.path).headings if one.startswith("Scores of")]

    assert title(made / "map.tif", labels) == ["Scores of map (training labels)"]
    assert title(reclassified.path, labels) == ["Scores of new (training labels)"]
    assert title(made / "map.tif", other) == ["Scores of map"]


@pytest.mark.parametrize("name", ["scores.json", "run/metrics.json"])
def test_scores_alone(made, tmp_path, name):
    found = json.loads((made / name).read_text())
    page = Page(report(made / name, tmp_path / "scores.html").path)
    assert f"{found['mean_iou']:.3f}" in page.text
    assert f"{found['pixels']:,}" in page.text
    assert "Map" not in page.headings
    assert "script" not in page.tags


@pytest.mark.parametrize("number", [1, 4, 5, 8])
def test_scores_by_distance(made, tmp_path, number):
    """No chart of a single scene, and no correlation of less than five."""
    found = json.loads((made / "scores.json").read_text())
    random = np.random.default_rng(number)
    found["scenes"] = [
        found["scenes"][0] | {"scene": f"scene{n}", "overall_accuracy": random.random(), "distance": random.random()}
        for n in range(number)
    ]
    (tmp_path / "s.json").write_text(json.dumps(found))
    page = Page(report(tmp_path / "s.json", tmp_path / "s.html").path)
    assert (f"Scores of {number} scenes by their distance" in page.text) == (number > 1)
    columns = [[one[key] for one in found["scenes"]] for key in ("overall_accuracy", "distance")]
    said = re.search(r"Spearman's rank correlation with the distance: (\S+) for accuracy \(n = (\d)\)", page.text)
    if number < 5:
        assert said is None
    else:
        assert said.groups() == (f"{spearmanr(*columns).statistic:.2f}", str(number))
        assert unescape(page.source).count(said[0]) == 2  # shown, and for screen readers
    worst = sorted(found["scenes"], key=lambda row: row["overall_accuracy"])[: 5 if number > 1 else 0]
    assert ("Scenes with the lowest accuracy" in page.text) == (number > 1)
    assert re.findall(r"scene\d", page.text)[: len(worst)] == [row["scene"] for row in worst]
    assert (f"Scores by scene ({number})" in page.text) == (number in (1, 8))  # otherwise all are in the first table


def test_scores_of_before_have_no_distance(made, tmp_path):
    found = json.loads((made / "scores.json").read_text())
    row = {key: value for key, value in found["scenes"][0].items() if key != "distance"}
    for scenes in ([row, row | {"scene": "z"}], [row | {"distance": None}] * 2):
        (tmp_path / "s.json").write_text(json.dumps(found | {"scenes": scenes}))
        page = Page(report(tmp_path / "s.json", tmp_path / "s.html", overwrite=True).path)
        assert "distance" not in page.text
        assert "Scenes with the lowest accuracy" in page.text


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scores.json", {"pixels": None}),
        ("scores.json", {"per_class": {"a": {}}}),
        ("scores.json", {"confusion": {"labels": [], "matrix": []}}),
        ("scores.json", {"scenes": [{"scene": "a"}]}),
        ("scores.json", {"scenes": [{"overall_accuracy": 0.5, "mean_iou": 0.5, "pixels": 1}]}),
        ("areas.json", {"samples": []}),
        ("areas.json", {"per_class": {"a": {"users": "b"}}}),
    ],
)
def test_values_that_are_damaged_are_one_line_and_no_page(made, tmp_path, name, change):
    (tmp_path / name).write_text(json.dumps(json.loads((made / name).read_text()) | change))
    with pytest.raises(DataError, match=rf"{name}: its scores or areas are damaged \(.+write them again with segkit"):
        report([made / "scores.json", tmp_path / name], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_areas_with_their_intervals(made, tmp_path):
    page = Page(report([made / "areas.json"], tmp_path / "areas.html").path)
    row = json.loads((made / "areas.json").read_text())["per_class"][MARKUP]
    assert f"{row['users']:.3f} ({row['users_low95']:.3f} to {row['users_high95']:.3f})" in page.text
    area, low, high = (format_hectares(row[f"area_ha{end}"]) for end in ("", "_low95", "_high95"))
    assert f"{area} ({low} to {high})" in page.text


def test_undefined_intervals(tmp_path):
    found = estimate([[9, 0], [0, 1]], [90.0, 10.0]).summary()  # one sample has no variance
    (tmp_path / "areas.json").write_text(json.dumps(found))
    page = Page(report(tmp_path / "areas.json", tmp_path / "areas.html").path)
    assert "1.000 (0.050 to 1.000)" in page.text
    for row in found["per_class"].values():  # as earlier versions wrote it
        del row["users_low95"], row["users_high95"]
    (tmp_path / "areas.json").write_text(json.dumps(found))
    page = Page(report(tmp_path / "areas.json", tmp_path / "areas.html", overwrite=True).path)
    assert "1.000 (?)" in page.text
    assert "nan" not in page.text.lower()


def test_all_sources_in_one_report(made, tmp_path):
    sources = [made / "run", made / "map.tif", made / "scores.json", made / "areas.json"]
    page = Page(report(sources, tmp_path / "all.html", device="cpu").path)
    assert page.headings == [
        "binary", "Map", "Validation", "Tiles with most and fewest errors", "Training", "Areas on the map",
        "Scores: scores", "Estimated areas: areas",
    ]  # fmt: skip
    assert re.search(r"Training run, map, scores and estimated areas, \d+ [A-Z][a-z]+ \d{4}", page.text)


def test_a_run_without_validation(made, tmp_path, monkeypatch):
    skip_pictures(monkeypatch.setattr)
    recipe = recipe_for(
        made, "binary", data={"val": None}, train={"epochs": 1, "steps_per_epoch": 1, "checkpoint": "last"}
    )
    segkit.train(recipe, tmp_path / "run")
    page = Page(report(tmp_path / "run", tmp_path / "run.html").path)
    assert page.headings == ["binary", "Training"]
    assert "validation data none" in page.text


def test_a_run_whose_scenes_are_missing(made, tmp_path):
    """The message says what can still be reported."""
    (made / "images").rename(made / "moved")
    try:
        with pytest.raises(DataError, match=r"images.*for a report of its scores only, give .*metrics\.json"):
            report(made / "run", tmp_path / "run.html")
        assert not (tmp_path / "run.html").exists()
        report(made / "run" / "metrics.json", tmp_path / "run.html")
    finally:
        (made / "moved").rename(made / "images")


def test_invalid_sources_are_errors(made, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"per_class": {}}')
    target = tmp_path / "out.html"
    for source, kind, said in (
        ([], UsageError, "nothing to report"),
        (tmp_path / "no.tif", MissingFileError, "no such map"),
        (tmp_path / "no.json", MissingFileError, "no such file of scores"),
        (tmp_path / "no", MissingFileError, "no such source"),
        (tmp_path / "empty", DataError, r"has no model\.safetensors, so it is not a finished run"),
        (tmp_path / "a.txt", UsageError, "not a source of a report"),
        (tmp_path / "broken.json", DataError, "not JSON"),
        (tmp_path / "other.json", DataError, "holds neither scores nor areas"),
        ([made / "run", made / "run"], UsageError, "given twice"),
        ([made / "map.tif"] * 2, UsageError, "one map, not 2"),
    ):
        with pytest.raises(kind, match=said):
            report(source, target)
    assert not target.exists()


def test_outputs_are_checked_before_the_work(made, tmp_path):
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "mine.png").write_text("mine")
    source = made / "scores.json"
    with pytest.raises(UsageError, match="nothing to write"):
        report(source)
    with pytest.raises(UsageError, match=r"ends in \.html"):
        report(source, tmp_path / "report.pdf")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        report(source, tmp_path / "there.html")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        report(source, png=tmp_path / "png")
    assert (tmp_path / "there.html").read_text() == "mine"
    report(source, tmp_path / "there.html", png=tmp_path / "png", overwrite=True)
    assert (tmp_path / "png" / "mine.png").read_text() == "mine"


def test_files_of_a_map_must_be_on_its_grid(made, tmp_path):
    with pytest.raises(GridError, match="different grids"):
        report(made / "map.tif", tmp_path / "map.html", images=made / "images" / "b.tif")
    other = write_raster(tmp_path / "chances.tif", np.zeros((2, 64, 80), np.float32))
    with rasterio.open(other, "r+") as dataset:
        dataset.transform = dataset.transform @ dataset.transform.translation(1, 0)
    with pytest.raises(GridError, match="different grids"):
        report(made / "map.tif", tmp_path / "map.html", probabilities=other)
    with pytest.raises(UsageError, match="--images: only for a map"):
        report(made / "run", tmp_path / "run.html", images=made / "images" / "a.tif")


def test_saved_epoch(made):
    recipe = recipe_for(made, "binary")
    rows = [{"epoch": epoch, "val_iou": iou} for epoch, iou in ((1, 0.5), (2, 0.7), (3, float("nan")), (4, 0.7))]
    assert _saved_epoch(rows, recipe) == 2
    assert _saved_epoch([{"epoch": 1}, {"epoch": 2}], recipe) == 2
    assert _saved_epoch(rows, recipe_for(made, "binary", train={"checkpoint": "last"})) == 4


def test_of_many_scenes_the_worst_and_the_best_are_shown(made, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules[ReportBuilder.__module__], "_MAX_SCENES", 2)
    monkeypatch.setattr(sys.modules[ReportBuilder.__module__], "_N_TILES", 1)  # drawing them is slow
    split, train = {"val": {"by": "scene", "fraction": 0.75}}, {"epochs": 1, "steps_per_epoch": 1}
    with pytest.MonkeyPatch.context() as patch:
        skip_pictures(patch.setattr)
        segkit.train(recipe_for(made, "binary", data=split, train=train), tmp_path / "run")
    result = report(tmp_path / "run", png=tmp_path / "png", device="cpu")
    found = segkit.evaluate(
        tmp_path / "run" / "model.safetensors", made / "images", made / "labels", device="cpu"
    )["scenes"]  # fmt: skip
    shown = [path.stem[len("map-") :][0] for path in result.pictures if path.stem.startswith("map-")]
    assert len(shown) == 2
    ranked = [row["scene"] for row in sorted(found, key=lambda row: row["overall_accuracy"])]
    assert ranked.index(shown[0]) < ranked.index(shown[1])


def test_the_command(made, tmp_path, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["segkit", "report", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr()

    scene = ["--images", made / "images" / "a.tif"]
    code, out = run(made / "map.tif", made / "areas.json", *scene, "-o", tmp_path / "a.html", "--png", tmp_path / "png")
    assert code == 0
    assert str(tmp_path / "a.html") in out.out
    assert "map-map.png" in out.out
    code, out = run(made / "map.tif", "-o", tmp_path / "a.html")
    assert code == 2
    assert out.err.count("\n") == 1
    assert "--overwrite" in out.err
    code, out = run(made / "map.tif", "--field", "class", "-o", tmp_path / "b.html")
    assert code == 2
    assert "--labels" in out.err


def point_at(browser, row, column):
    """Point at the middle of a pixel of the first scene; what the page reads there."""
    x, y = browser.run(
        """
        const [row, column] = arguments, {x_range, y_range, inner_width, inner_height} = Bokeh.index.roots[0].model;
        const {pixel} = JSON.parse([...document.querySelectorAll(".map-data")].at(-1).textContent);
        const {left, top} = document.querySelector(".map-canvas").getBoundingClientRect();
        const x = (column + 0.5) * pixel[0], y = -(row + 0.5) * pixel[1];
        return [left + (x - x_range.start) / (x_range.end - x_range.start) * inner_width,
                top + (y_range.end - y) / (y_range.end - y_range.start) * inner_height];
        """,
        row,
        column,
    )
    browser.point(x, y)
    said = (
        "const said = document.querySelector('.map-readout').textContent; return said.startsWith(arguments[0]) && said"
    )
    return " ".join(browser.until(said, f"row {row} ").split())


def test_the_readout_in_a_browser_equals_the_map(made, tmp_path, browser):
    """A person's way through the page: no error, nothing from the network, and what is pointed at is named."""
    path = report(
        [made / "map.tif", made / "scores.json"],
        tmp_path / "map.html",
        images=made / "images" / "a.tif",
        labels=made / "labels" / "a.tif",
        probabilities=made / "chances.tif",
        ignore=[255],
    ).path
    browser.open(path)
    browser.until(READY)
    with rasterio.open(made / "map.tif") as dataset, rasterio.open(made / "labels" / "a.tif") as labels:
        decided, truth = dataset.read(1), labels.read(1)
    names = {0: "background", 7: MARKUP, 255: "unlabelled"}
    for row, column in ((40, 20), (20, 60), (60, 70), (30, 78)):
        readout = point_at(browser, row, column)
        assert names[int(decided[row, column])] in readout
        assert f"column {column} " in readout
        if truth[row, column] != 255:
            assert names[int(truth[row, column])] in readout
    assert not browser.errors()
    assert not [url for url in browser.requests() if not url.startswith(("file:", "data:", "blob:", "about:"))]
    browser.open(path, width=360, height=740, phone=True)
    browser.until(READY)
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert not browser.errors()
