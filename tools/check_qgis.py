"""Open files that segkit wrote in QGIS, without a window, and check what it shows: legends, colours, no data, the form.

Run it with the Python that has QGIS (Debian: apt-get install python3-qgis; /usr/bin/python3), which needs no segkit:

    QT_QPA_PLATFORM=offscreen /usr/bin/python3 tools/check_qgis.py map.tif probabilities.tif map.gpkg points.gpkg
    QT_QPA_PLATFORM=offscreen /usr/bin/python3 tools/check_qgis.py todo.gpkg audit.gpkg --pictures out --imagery rgb.tif

With --pictures FOLDER it also draws each layer with its legend, and the form of layers that have one; over the raster
--imagery also a window to label with its polygons and forms, as somebody who labels sees it.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
try:
    from osgeo import gdal
    from qgis.core import (
        Qgis,
        QgsApplication,
        QgsFieldConstraints,
        QgsLayerTree,
        QgsLayerTreeModel,
        QgsLegendRenderer,
        QgsLegendSettings,
        QgsMapRendererSequentialJob,
        QgsMapSettings,
        QgsProject,
        QgsRasterLayer,
        QgsValueMapFieldFormatter,
        QgsVectorLayer,
    )
    from qgis.gui import QgsAttributeForm, QgsGui
    from qgis.PyQt.QtCore import QSize, Qt
    from qgis.PyQt.QtGui import QColor, QImage, QPainter
except ImportError as error:
    sys.exit(f"check_qgis.py: {error}; run it with the Python of QGIS (Debian: /usr/bin/python3 with python3-qgis)")

gdal.UseExceptions()
_MAX_SIDE_PX = 1024  # of the part of a raster that is compared with its picture


class Check:
    """Collects what is wrong with one layer."""

    def __init__(self, name):
        self.name, self.faults = name, []

    def equal(self, what, found, expected):
        """Note a fault if two values differ."""
        if found != expected:
            self.faults.append(f"{what} is {found!r}, not {expected!r}")

    def report(self, seen):
        """Print what was seen and what is wrong; return whether nothing is."""
        print(f"{'WRONG' if self.faults else 'right'}  {self.name}: {seen}", *self.faults, sep="\n       ")
        return not self.faults


def check_raster(path):
    dataset = gdal.Open(str(path))
    tags, check = dataset.GetMetadata(), Check(path.name)
    layer = QgsRasterLayer(str(path), path.stem)
    check.equal("valid", layer.isValid(), True)
    renderer = layer.renderer()
    rows = json.loads(tags.get("segkit_classes", "[]"))
    for row in rows:  # XML has no control characters
        row["name"] = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f]", "\ufffd", row["name"])
    if "segkit_output" in tags:
        check.equal("renderer", renderer.type(), "singlebandpseudocolor")
        background = {row["name"] for row in rows if row.get("background")}
        shown = dataset.GetRasterBand(renderer.usesBands()[0]).GetDescription()
        check.equal("the shown band is background", shown in background, False)
        seen = f"colours of band {renderer.usesBands()[0]}, {shown}"
        transparent = {}
    else:
        check.equal("renderer", renderer.type(), "paletted")
        if tags.get("segkit_type") == "multilabel":
            first = rows[0]
            rows = [
                {"value": 0, "name": f"not {first['name']}"},
                {"value": 1} | {key: first.get(key) for key in ("name", "color")},
            ]
        found = [(one.value, one.label, one.color.name()) for one in renderer.classes()]
        check.equal("number of rows in the legend", len(found), len(rows))
        for (value, label, color), row in zip(found, rows, strict=False):
            check.equal("row of the legend", (value, label), (row["value"], row["name"]))
            check.equal(f"colour of {label}", color, row.get("color") or color)
        table = dataset.GetRasterBand(1).GetDefaultRAT()
        names = (
            {}
            if table is None
            else {table.GetValueAsInt(row, 0): table.GetValueAsString(row, 1) for row in range(table.GetRowCount())}
        )
        check.equal("attribute table", names, {row["value"]: row["name"] for row in rows})
        seen = "legend " + ", ".join(label for _, label, _ in found)
        transparent = {one.value for one in renderer.classes() if not one.color.alpha()}
    check_transparency(check, dataset, layer, transparent)
    return check.report(seen)


def check_transparency(check, dataset, layer, transparent):
    """Compare the alpha of each pixel that QGIS draws with no data in the file, in the upper left part."""
    width, height = min(dataset.RasterXSize, _MAX_SIDE_PX), min(dataset.RasterYSize, _MAX_SIDE_PX)
    extent = layer.extent()
    extent.setXMaximum(extent.xMinimum() + width * layer.rasterUnitsPerPixelX())
    extent.setYMinimum(extent.yMaximum() - height * layer.rasterUnitsPerPixelY())
    band = dataset.GetRasterBand(layer.renderer().usesBands()[0])
    values, hidden = band.ReadAsArray(0, 0, width, height), band.GetMaskBand().ReadAsArray(0, 0, width, height) == 0
    block = layer.renderer().block(1, extent, width, height)
    wrong = 0
    for row in range(height):
        for column in range(width):
            clear = hidden[row, column] or int(values[row, column]) in transparent
            wrong += (block.color(row, column) >> 24 == 0) != bool(clear)
    check.equal("pixels that are transparent or not, unlike the data", wrong, 0)


def render(layers, extent, side):
    """Return an image of layers, the first on top."""
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[0].crs())
    settings.setExtent(extent)
    settings.setOutputSize(QSize(side, side))
    settings.setBackgroundColor(QColor("white"))
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    return job.renderedImage()


def draw_layer(layer, picture, side=520, legend_width=330):
    """Draw a layer and its legend beside it, as QGIS shows them."""
    rendered = render([layer], layer.extent().buffered(layer.extent().width() / 50), side)
    image = QImage(side + legend_width, side, QImage.Format_RGB32)
    image.fill(Qt.white)
    QgsProject.instance().addMapLayer(layer, False)  # the legend finds layers by name in the project
    tree = QgsLayerTree()
    tree.addLayer(layer)
    painter = QPainter(image)
    painter.drawImage(0, 0, rendered)
    painter.translate(side, 0)
    painter.scale(2, 2)  # legends are drawn in millimetres
    model = QgsLayerTreeModel(tree)  # the legend does not keep it
    legend = QgsLegendRenderer(model, QgsLegendSettings())
    legend.setLegendSize(legend.minimumSize())
    legend.drawLegend(painter)
    painter.end()
    image.save(str(picture))


def grab_form(layer, feature, width=560):
    """Return an image of the form in which a feature is edited."""
    layer.startEditing()
    form = QgsAttributeForm(layer, feature)
    form.resize(max(width, form.minimumSizeHint().width()), form.sizeHint().height())
    image = form.grab().toImage()
    layer.rollBack()
    return image


def draw_labelling(path, imagery, picture, side=560):
    """Draw the first window that is to do with its pre-labels over imagery, and the forms of both beside it."""
    windows, polygons = (QgsVectorLayer(f"{path}|layername={name}", name) for name in ("windows", "polygons"))
    todo = next(windows.getFeatures("status = 'todo'"), None) or next(windows.getFeatures())
    box = todo.geometry().boundingBox()
    layers = [windows, polygons, QgsRasterLayer(str(imagery), imagery.stem)]
    parts = [render(layers, box.buffered(box.width() / 6), side), grab_form(windows, todo, 420)]
    drawn = next(polygons.getFeatures(box), None)
    if drawn is not None:
        parts.append(grab_form(polygons, drawn, 420))
    width, height = max(part.width() for part in parts[1:]), sum(part.height() + 10 for part in parts[1:])
    image = QImage(side + 10 + width, max(side, height), QImage.Format_RGB32)
    image.fill(Qt.white)
    painter = QPainter(image)
    painter.drawImage(0, 0, parts[0])
    top = 0
    for part in parts[1:]:
        painter.drawImage(side + 10, top, part)
        top += part.height() + 10
    painter.end()
    image.save(str(picture))


def draw_all(path, folder, imagery):
    """Draw the layers of a file, and the form of those that have choices."""
    if path.suffix.lower() in {".tif", ".tiff"}:
        draw_layer(QgsRasterLayer(str(path), path.stem), folder / f"{path.stem}.png")
        return
    dataset = gdal.OpenEx(str(path))
    for number in range(dataset.GetLayerCount()):
        name = dataset.GetLayer(number).GetName()
        layer = QgsVectorLayer(f"{path}|layername={name}", name)
        if name == "layer_styles" or not layer.isSpatial():
            continue
        draw_layer(layer, folder / f"{path.stem}_{name}.png")
        if any(layer.editorWidgetSetup(at).type() == "ValueMap" for at in range(len(layer.fields()))):
            grab_form(layer, next(layer.getFeatures())).save(str(folder / f"{path.stem}_{name}_form.png"))
    if imagery is not None and is_work_file(dataset):
        draw_labelling(path, imagery, folder / f"{path.stem}_labelling.png")


def is_work_file(dataset):
    """Whether a file is one of `segkit suggest`."""
    return all(dataset.GetLayerByName(name) is not None for name in ("windows", "polygons", "task"))


def read_classes(path):
    """Return {class: "#rrggbb"} of a file of `segkit suggest`, and the choices of its form."""
    dataset = gdal.OpenEx(str(path))
    feature = dataset.GetLayerByName("task").GetNextFeature()  # lives as long as the data set
    task = json.loads(feature["task"])
    colors = {one["name"]: one["color"] for one in task["classes"]}
    return colors, [*colors, *["background"] * bool(task["background"]), "unlabelled"]


def check_choices(check, layer, field, expected):
    """Compare the choices of a field in the form."""
    setup = layer.editorWidgetSetup(layer.fields().indexOf(field))
    check.equal(f"form of {field}", setup.type(), "ValueMap")
    found = [value for choice in setup.config().get("map", []) for value in choice.values()]
    check.equal(f"choices of {field}", found, expected)


def check_legend(check, layer, field, expected):
    """Compare the categories by which a layer is coloured; returns {value: colour of the outline}."""
    renderer = layer.renderer()
    check.equal("renderer", renderer.type(), "categorizedSymbol")
    if renderer.type() != "categorizedSymbol":
        return {}
    check.equal("legend of", renderer.classAttribute(), field)
    check.equal("legend", [one.value() for one in renderer.categories()], expected)
    return {one.value(): one.symbol().symbolLayer(0).strokeColor().name() for one in renderer.categories()}


def check_editable(check, layer, expected):
    """Compare which fields can be edited in the form."""
    form, fields = layer.editFormConfig(), layer.fields()
    found = [field.name() for at, field in enumerate(fields) if field.name() != "fid" and not form.readOnly(at)]
    check.equal("fields that can be edited", found, expected)


def check_windows(check, layer, path):
    statuses = ["todo", "done", "skip"]
    colors = check_legend(check, layer, "status", statuses)
    check.equal("number of colours", len(set(colors.values())), 3)
    check_choices(check, layer, "status", statuses)
    check_editable(check, layer, ["status", "labeller", "date", "note"])
    for field in ("labeller", "date"):
        default = layer.defaultValueDefinition(layer.fields().indexOf(field))
        check.equal(f"{field} is filled in", bool(default.expression()) and default.applyOnUpdate(), True)
    return f"form with {', '.join(statuses)}"


def check_polygons(check, layer, path):
    colors, choices = read_classes(path)
    found = check_legend(check, layer, "class", choices)
    check.equal("colours", {name: found.get(name) for name in colors}, colors)
    check_choices(check, layer, "class", choices)
    constraints = layer.fieldConstraints(layer.fields().indexOf("class"))
    check.equal("class is required", bool(constraints & QgsFieldConstraints.ConstraintNotNull), True)
    return f"form with {', '.join(choices)}"


def check_audit(check, layer, path):
    colors = check_legend(check, layer, "kind", ["swapped", "shifted", "class", "missing", "part"])
    check.equal("number of colours", len(set(colors.values())), 5)
    check_choices(check, layer, "status", [NULL, "label wrong", "label right", "unsure"])
    check_editable(check, layer, ["status", "comment"])
    return f"legend {', '.join(colors)}; form"


NULL = QgsValueMapFieldFormatter.NULL_VALUE  # the choice that stands for no value
LAYERS = {"windows": check_windows, "polygons": check_polygons, "audit": check_audit}


def check_vector(path):
    dataset = gdal.OpenEx(str(path))
    names = [dataset.GetLayer(number).GetName() for number in range(dataset.GetLayerCount())]
    right = [check_vector_layer(path, name) for name in names if name != "layer_styles"]
    return all(right)


def check_vector_layer(path, name):
    layer, check = QgsVectorLayer(f"{path}|layername={name}", name), Check(f"{path.name}, layer {name}")
    check.equal("valid", layer.isValid(), True)
    if not layer.isSpatial():
        return True
    if name in LAYERS:
        return check.report(LAYERS[name](check, layer, path))
    renderer = layer.renderer()
    fields = [field.name() for field in layer.fields()]
    if "ref_class" in fields:
        setup = layer.editorWidgetSetup(fields.index("ref_class"))
        check.equal("form of ref_class", setup.type(), "ValueMap")
        choices = [key for choice in setup.config().get("map", []) for key in choice]
        check.equal("the form has choices", bool(choices), True)
        check.equal("id can be edited", layer.editFormConfig().readOnly(fields.index("id")), True)
        check.equal("marker", renderer.symbol().symbolLayer(0).properties()["name"], "cross")
        seen = f"form with {', '.join(choices)}"
    elif "class_id" in fields:
        check.equal("renderer", renderer.type(), "categorizedSymbol")
        wanted = {feature["class_id"]: feature["class"] for feature in layer.getFeatures()}
        labels = {} if check.faults else {int(one.value()): one.label() for one in renderer.categories()}
        check.equal("legend", {key: labels.get(key) for key in wanted}, wanted)
        seen = f"legend {', '.join(labels.values())}"
    else:
        fill = renderer.symbol().symbolLayer(0).properties()
        check.equal("fill", fill.get("style"), "no")
        seen = "outlines"
    return check.report(seen)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="rasters and vector files that segkit wrote")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw the layers, too")
    parser.add_argument("--imagery", type=Path, metavar="RASTER", help="drawn below windows to label")
    options = parser.parse_args()
    files = options.files
    if missing := [str(file) for file in files if not file.exists()]:
        parser.error(f"no such file: {', '.join(missing)}")
    QgsApplication.setPrefixPath(os.environ.get("QGIS_PREFIX_PATH", "/usr"), True)
    application = QgsApplication([], options.pictures is not None)
    application.initQgis()
    print(f"QGIS {Qgis.QGIS_VERSION}, GDAL {gdal.__version__}")
    right = [check_raster(file) if file.suffix.lower() in {".tif", ".tiff"} else check_vector(file) for file in files]
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
        QgsGui.editorWidgetRegistry().initEditors()
        for file in files:
            draw_all(file, options.pictures, options.imagery)
    sys.stdout.flush()
    os._exit(not all(right))  # some versions of QGIS crash when Python ends


main()
