"""A labeller who knows the truth, and edits files of windows as QGIS does: through GDAL, layer by layer."""

import geopandas
import numpy as np
import pandas
import pyogrio
import rasterio
import shapely
from rasterio.features import shapes as trace


def read(path, layer):
    """Return a layer as a GeoDataFrame."""
    return pyogrio.read_dataframe(path, layer=layer)


def replace(path, layer, table):
    """Write a layer in the place of that of the file."""
    pyogrio.write_dataframe(table, path, layer=layer, driver="GPKG", layer_options={"OVERWRITE": "YES"})


def truth_polygons(raster, names):
    """Return the polygons of a raster of codes; `names` is {code: class}, and other codes have no polygon."""
    with rasterio.open(raster) as dataset:
        codes = dataset.read(1).astype(np.int32)
        found = [
            (shapely.geometry.shape(one), names.get(int(code)))
            for one, code in trace(codes, transform=dataset.transform)
        ]
        crs = dataset.crs
    kept = [(shape, name) for shape, name in found if name is not None]
    return geopandas.GeoDataFrame({"class": [name for _, name in kept]}, geometry=[shape for shape, _ in kept], crs=crs)


def label(path, truth, ids=None, *, labeller="ann"):
    """Replace the pre-labels of some windows (default: all) by the truth (a GeoDataFrame), and set them to done."""
    windows, polygons = read(path, "windows"), read(path, "polygons")
    mine = windows["id"].isin(windows["id"] if ids is None else ids)
    ground = windows.geometry[mine].union_all()
    others = polygons[~polygons.intersects(ground.buffer(-1e-6 * ground.length))]
    drawn = geopandas.clip(truth.to_crs(windows.crs) if windows.crs else truth, ground).explode(ignore_index=True)
    drawn = drawn[drawn.geom_type == "Polygon"]
    polygons = geopandas.GeoDataFrame(
        pandas.concat([others, drawn[["class", "geometry"]]], ignore_index=True), crs=windows.crs
    )
    windows.loc[mine, "status"], windows.loc[mine, "labeller"] = "done", labeller
    replace(path, "windows", windows)
    replace(path, "polygons", polygons)
