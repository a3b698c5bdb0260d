"""Every command that the documents show is run, in the order in which they show it."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import typer
import yaml
from dask_workers import forked_workers
from exported import classical
from matplotlib.figure import Figure
from places import ROOT
from products import write_item, write_safe
from quick import skip_drawing_of_pages, skip_measurements, skip_pictures
from rasterio.crs import CRS
from rasterio.transform import from_origin

from segkit.cli import app as cli
from segkit.cli import root
from segkit.models.segmenter import load
from segkit.recipe.features import CLASSICAL

QUICKSTART = ROOT / "docs" / "index.md"  # whose commands other documents show, too
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY_MODEL = {"encoder": "tu-resnet10t", "options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}}
TINY_LEARNER = {"options": {"max_iter": 5}}
TINY_TRAINING = {"tile_size": 32, "batch_size": 2, "steps_per_epoch": 1, "epochs": 1}
# What a document takes for granted that another one makes.
BEFORE = {
    "vectorize.md": ["segkit predict forest.safetensors scene.tif -o map.tif --probabilities probabilities.tif"],
    "assess.md": ["segkit assess design map.tif -n 200 -o filled.gpkg"],
    "areas.md": ["segkit predict forest.safetensors scene.tif -o predicted.tif --probabilities probabilities.tif"],
}

# Documents whose Python continues their commands. README.md, python.md and labels.md have tests of their own. That
# of mosaics.md, report.md and stac.md repeats commands, that of cluster.md needs a cluster, the last is about torch.
PYTHON_AFTER_COMMANDS = {"applicability.md", "predict.md", "vectorize.md"}
# Commands whose results no other example of the help takes.
RESULTS_NOBODY_READS = {
    "areas",
    "audit",
    "change",
    "check",
    "compare",
    "encoders",
    "evaluate",
    "export",
    "info",
    "report",
}


def commands(document: Path) -> list[str]:
    fences = re.findall(r"^```bash\n(.*?)^```", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line for fence in fences for line in fence.splitlines() if line.startswith("segkit ")]


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def run_python(document: Path) -> None:
    names: dict[str, object] = {}
    codes = python_blocks(document)
    assert codes
    for code in codes:
        exec(compile(code, document.name, "exec"), names)


def examples() -> list[str]:
    """Return the commands that the help of each command shows."""
    texts = [typer.main.get_command(root.app).epilog]
    for group in (root.app, root.assess_app):
        texts += [command.epilog for command in group.registered_commands]
    return [line.strip() for text in texts for line in (text or "").splitlines() if line.strip().startswith("segkit ")]


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    skip_measurements(monkeypatch.setattr)
    monkeypatch.setattr("segkit.reporting.sections._N_TILES", 1)  # drawing them is slow
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0, line


def skip_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["segkit.training.results"].training_curves, "curves", lambda *_: Figure())


def write(path: Path, values: np.ndarray, **profile: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": CRS.from_epsg(32721), "transform": from_origin(500_000, 8_900_000, 10, 10)}
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=values.dtype, **(place | profile)
    ) as file:
        file.write(values)


def make_tiny(recipe: Path) -> None:
    """Give a recipe a network and a training that take seconds."""
    content = yaml.safe_load(recipe.read_text())
    is_classical = content["model"].get("architecture") in CLASSICAL
    content["model"] |= TINY_LEARNER if is_classical else TINY_MODEL
    content["train"] |= TINY_TRAINING
    content["data"]["val"] = {"fraction": 0.3, "block": 32, "gap": 4}
    recipe.write_text(yaml.safe_dump(content))


def exported_model(line: str) -> str:
    """Return the model for a command of export.md: a learner is exported in a fraction of the time of a network.

    A network of fixed windows is exported here in int8, others in tests/exporting with free ones and to torch.export.
    """
    return "fixed.safetensors" if "--quantize" in line else "learner.safetensors"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the recipes with a tiny network, their data, and the files that documents name."""
    root = tmp_path_factory.mktemp("workplace")
    random = np.random.default_rng(0)
    truth = np.kron(random.integers(0, 2, (1, 6, 6)), np.ones((1, 16, 16))).astype(np.uint8)
    scene = (truth * np.int64(900) + random.integers(500, 700, (3, 96, 96))).astype(np.uint16)
    for path in (
        "scene.tif",
        "scene_20240701.tif",
        "north.tif",
        "south.tif",
        "data/deforestation/images/a.tif",
        "data/amazon/images/a.tif",
    ):
        write(root / path, scene)
    for path in ("truth.tif", "data/deforestation/labels/a.tif", "data/amazon/labels/a.tif"):
        write(root / path, truth)
    for row in range(2):
        for column in range(2):
            part = scene[:, 48 * row : 48 * row + 48, 48 * column : 48 * column + 48]
            place = from_origin(500_000 + 480 * column, 8_900_000 - 480 * row, 10, 10)
            write(root / "tiles" / f"{row}{column}.tif", part, transform=place)
    write(root / "scene_SCL.tif", np.where(truth == 1, 4, 8).astype(np.uint8))
    product = {(name, 10): band + np.uint16(1000) for name, band in zip(("B02", "B03", "B04"), scene, strict=True)}
    write_safe(root, product, baseline="04.00")
    write_item(root / "item.json", {"data": {"href": "scene.tif"}})
    coarse = {"crs": CRS.from_epsg(32721), "transform": from_origin(499_900, 8_900_100, 30, 30)}
    write(root / "dem.tif", np.add.outer(np.arange(40.0), np.arange(40.0))[None].astype(np.float32), **coarse)
    district = geopandas.GeoSeries([shapely.box(500_100, 8_899_300, 500_700, 8_899_800)], crs=32721)
    district.to_crs(4326).to_file(root / "district.gpkg")
    geopandas.GeoDataFrame({"name": ["north"]}, geometry=district.to_crs(4326)).to_file(root / "districts.gpkg")
    (root / "names.csv").write_text("value,name,color\n1,forest,#1b7837\n")
    (root / "counts.csv").write_text("map,background,deforestation\nbackground,90,2\ndeforestation,5,60\n")
    for recipe in (ROOT / "configs").glob("*.yaml"):
        (root / "configs").mkdir(exist_ok=True)
        make_tiny(Path(shutil.copy(recipe, root / "configs")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run("segkit train configs/deforestation.yaml -o trained", patch)
    shutil.copy(root / "trained" / "model.safetensors", root / "forest.safetensors")
    second = load(root / "forest.safetensors")
    second.mean += 10
    second.save(root / "second.safetensors")
    second._receptive_field = "global"
    second.save(root / "fixed.safetensors")
    classical(root).save(root / "learner.safetensors")
    return root


def label_halves(path: Path) -> None:
    """Label the windows of a file: half of each is of the first class, half of the second one."""
    windows = geopandas.read_file(path, layer="windows")
    names = [one["name"] for one in json.loads(geopandas.read_file(path, layer="task")["task"][0])["classes"]]
    halves = []
    for left, bottom, right, top in windows.bounds.to_numpy():
        middle = (left + right) / 2
        halves += [shapely.box(left, bottom, middle, top), shapely.box(middle, bottom, right, top)]
    drawn = geopandas.GeoDataFrame({"class": ([*names, names[0]][:2]) * len(windows)}, geometry=halves, crs=windows.crs)
    drawn.to_file(path, layer="polygons")
    windows.assign(status="done").to_file(path, layer="windows")


def finished_maps(here: Path) -> None:
    """Write maps in which every class occurs, which a tiny training does not promise."""
    shutil.copy(here / "truth.tif", here / "map.tif")
    classes = [{"name": "background", "value": 0, "background": True}, {"name": "deforestation", "value": 1}]
    with rasterio.open(here / "map.tif", "r+") as map_:
        map_.update_tags(segkit_classes=json.dumps(classes))
    for year in (2019, 2024):
        shutil.copy(here / "map.tif", here / f"map_{year}.tif")


def keep_labels_apart(here: Path) -> None:
    """Write labels with the codes of the recipe that `init` writes for scenes without labels."""
    with rasterio.open(here / "truth.tif") as truth:
        codes, profile = truth.read(), truth.profile
    with rasterio.open(here / "kept_apart.tif", "w", **profile) as dataset:
        dataset.write(np.where(codes == 1, 2, 1).astype(codes.dtype))


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if one != QUICKSTART], ids=lambda path: path.name)
def test_commands_run(document: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = shutil.copytree(workplace, tmp_path / "here")
    monkeypatch.chdir(here)
    # Of the many tiny trainings of these pages, which take as long to draw as to train, none looks at it.
    monkeypatch.setattr(sys.modules["segkit.training.results"], "draw_worst_windows", lambda *_, **__: None)
    if document.name == "audit.md":
        folds = importlib.import_module("segkit.auditing.folds")
        monkeypatch.setitem(folds._MODELS["forest"]["options"], "n_estimators", 5)
    if document.name in ("areas.md", "assess.md", "change.md", "clean.md", "commands.md", "reclassify.md"):
        finished_maps(here)
    if document.name == "label-loop.md":
        keep_labels_apart(here)
    if document.name not in ("README.md", "report.md", "train.md"):  # which show the curves
        skip_curves(monkeypatch)
    if document.name != "report.md":
        skip_drawing_of_pages(monkeypatch.setattr)
    for line in [*BEFORE.get(document.name, []), *commands(document)]:
        if document.name == "export.md":
            shutil.copy(exported_model(line), "forest.safetensors")
        with forked_workers() if "--cluster" in line else nullcontext():
            run(line, monkeypatch)
        if line.startswith("segkit check mine.yaml"):  # as `init` wrote it; the training is a small one
            make_tiny(Path("mine.yaml"))
        if "segkit suggest" in line:
            label_halves(Path(shlex.split(line)[-1]))
        if "filled.gpkg" in line and "design" in line:
            points = geopandas.read_file("filled.gpkg", layer="points")
            points.assign(ref_class="deforestation").to_file("filled.gpkg", layer="points")
    if document.name in PYTHON_AFTER_COMMANDS:
        run_python(document)


def test_commands_of_the_quickstart_run_elsewhere() -> None:
    elsewhere = {line for document in DOCUMENTS if document != QUICKSTART for line in commands(document)}
    assert commands(QUICKSTART)
    assert set(commands(QUICKSTART)) <= elsewhere


def test_examples_of_the_help_run(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = shutil.copytree(workplace, tmp_path / "here")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys.modules["segkit.training.results"], "draw_worst_windows", lambda *_, **__: None)
    skip_curves(monkeypatch)
    skip_drawing_of_pages(monkeypatch.setattr)
    found = examples()
    # Those that take neither a finished map nor a recipe first; the demo and the cluster are tested where they belong.
    found.sort(key=lambda line: not line.startswith(("segkit predict", "segkit init")))
    assert len(found) > 12
    run_elsewhere = {line.partition(" #")[0].strip() for document in DOCUMENTS for line in commands(document)}
    for line in found:
        if line in run_elsewhere and line.split()[1] in RESULTS_NOBODY_READS:
            continue
        if "segkit demo" in line or "--cluster" in line or line.endswith("--help"):
            continue
        if "map.tif" in line and not line.startswith("segkit predict"):
            finished_maps(here)
        if "done.gpkg" in line:
            for name in ("done.gpkg", "second.gpkg"):
                shutil.copy("todo.gpkg", name)
                label_halves(Path(name))
        if "filled.gpkg" in line:
            points = geopandas.read_file("points.gpkg", layer="points")
            points.assign(ref_class="deforestation").to_file("filled.gpkg", layer="points")
        run(line, monkeypatch)


@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_python_of_documents_runs(
    document: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(workplace, tmp_path / "here"))
    run_python(ROOT / document)


def test_python_of_annotated_areas_labels_the_areas_alone(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields that reach out of an area are cut; the rest of the areas is background, and all else is unlabelled."""
    monkeypatch.chdir(shutil.copytree(workplace, tmp_path / "here"))
    east, north = 500_000, 8_900_000  # of the scene: 96 x 96 pixels of 10 m
    rectangles = {
        "areas": [(0, 0, 300, 400), (500, 500, 900, 700)],
        "fields": [(200, 100, 500, 300), (0, 800, 90, 900)],
    }
    for name, corners in rectangles.items():
        boxes = [
            shapely.box(east + left, north - bottom, east + right, north - top) for left, top, right, bottom in corners
        ]
        frame = geopandas.GeoDataFrame({"class": "field"}, geometry=boxes, index=range(len(boxes)), crs=32721)
        (frame.drop(columns="class").to_crs(4326) if name == "areas" else frame).to_file(f"{name}.gpkg")
    run_python(ROOT / "docs" / "labels.md")
    section = (ROOT / "docs" / "labels.md").read_text().partition("### Annotated areas")[2].partition("## Points")[0]
    keys = yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, flags=re.DOTALL)[1])  # type: ignore[index]
    recipe = {
        "name": "fields",
        "task": {"type": "binary", "classes": [{"name": "field", "value": 1}]},
        "data": {"train": {"images": "scene.tif", **keys}, "val": None},
        "model": {"architecture": "lda"},
    }
    Path("fields.yaml").write_text(yaml.safe_dump(recipe))
    counts = {one.name: one.pixels for one in importlib.import_module("segkit").check("fields.yaml").trains}
    assert counts == {"background": 30 * 40 + 40 * 20 - 10 * 20, "field": 10 * 20}


def run_notebook(name: str, parameters: dict[str, object]) -> tuple[list[object], list[dict[str, object]]]:
    """Run a notebook in this process, since a kernel would import everything again; return its values and outputs."""
    cells = json.loads((ROOT / "docs" / name).read_text(encoding="utf-8"))
    run_cells = importlib.import_module("run_notebook").run_cells
    values = [value for _, value in run_cells(cells, parameters)]
    return values, [output for cell in cells["cells"] for output in cell.get("outputs", ())]


@pytest.fixture
def for_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to run in."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.chdir(tmp_path)
    skip_measurements(monkeypatch.setattr)
    monkeypatch.setattr("segkit.training.results.draw_worst_windows", lambda *_, **__: None)


@pytest.mark.usefixtures("for_notebooks")
def test_the_notebook_of_a_first_map_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_pictures(monkeypatch.setattr)
    small = ["train.epochs=1", "train.steps_per_epoch=2", "data.val.block=32", "data.val.gap=2"]
    values, shown = run_notebook("first-map.ipynb", {"width": 288, "height": 256, "changes": small})
    assert sum("image/png" in output["data"] for output in shown) == 3
    assert any("mean IoU" in "".join(output["data"].get("text/html", "")) for output in shown)
    assert any(getattr(value, "name", None) == "land_cover" for value in values)
    assert (values[-1]["sum"] > 0).all()


@pytest.mark.usefixtures("for_notebooks")
def test_the_notebook_of_land_cover_runs() -> None:
    small = {"width": 288, "height": 256, "points": 80, "model": "model={architecture: lda}"}
    areas = run_notebook("land-cover.ipynb", small)[0][-1]
    assert areas["mapped ha"].sum() == pytest.approx(areas["estimated ha"].sum(), abs=0.5)  # rounded to 0.1 each
    assert ((areas["from"] <= areas["estimated ha"]) & (areas["estimated ha"] <= areas["to"])).all()


@pytest.mark.usefixtures("for_notebooks")
def test_the_notebook_of_better_labels_runs() -> None:
    values, _ = run_notebook("improve-labels.ipynb", {"width": 288, "height": 256, "number": 3})
    scores = next(value for value in values if list(getattr(value, "columns", ())) == ["first", "second"])
    assert ((scores > 0) & (scores < 1)).all(axis=None)
    assert Path("loop.html").stat().st_size > 10_000


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_show_what_they_computed(notebook: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"]) >= 2


def test_links_lead_somewhere() -> None:
    links = [
        (document, target)
        for document in DOCUMENTS
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    ]
    assert len(links) > len(DOCUMENTS)
    for document, target in links:
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_recipe_is_valid() -> None:
    from segkit.recipe.schema import Recipe

    names = [Recipe.load(path).name for path in sorted((ROOT / "configs").glob("*.yaml"))]
    assert {"amazon", "deforestation", "landcover", "overlapping"} <= set(names)
